"""Helpers for all tests: real processes with gloo on the CPU, with a timeout."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import pytest

from data_pipeline.store import storage
from data_pipeline.store.manifest import Manifest
from tests.corpora import make_corpus
from tests.patience import limit, slowness
from tests.s3_server import S3Server, running
from tests.warm import Warm

ROOT = Path(__file__).parent.parent
STARTS_PROCESSES = {"command", "warm", "s3_session", "served", "address"}


def pytest_configure(config: pytest.Config) -> None:
    """Measures the machine before pytest-xdist starts its workers, which would disturb it."""
    slowness()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks tests as slow that start commands or servers through a fixture."""
    for item in items:
        if STARTS_PROCESSES.intersection(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.slow)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Lets the time limit of a test grow with the slowness of the machine.

    The limit is a marker's or that of pyproject.toml; one from the command line is used unchanged.
    """
    if item.config.getoption("timeout", None) is None:
        marker = item.get_closest_marker("timeout")
        seconds = marker.args[0] if marker else item.config.getini("timeout")
        item.add_marker(pytest.mark.timeout(limit(float(seconds))), append=False)
    return (yield)


def fresh_command(
    *arguments: str, processes: int = 0, timeout: float = 240, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Runs `python -m ...` from the repository's root, in a new interpreter.

    With `processes` > 0 it runs under torchrun. `timeout` is in seconds of a fast, idle machine.
    """
    command = [sys.executable, "-m"]
    if processes:
        command += [
            "torch.distributed.run",
            "--standalone",
            "--nproc-per-node",
            str(processes),
            "-m",
        ]
    return subprocess.run(
        [*command, *arguments],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **environment},
        capture_output=True,
        text=True,
        timeout=limit(timeout),
    )


@pytest.fixture(scope="session")
def warm() -> Iterator[Warm]:
    """One process with the slow imports, shared by all tests of a worker."""
    process = Warm(ROOT, "s3fs")
    yield process
    process.close()


@pytest.fixture(scope="session")
def command(warm: Warm) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Like `fresh_command`, with processes that are forked from one with the trainer's imports.

    For tests that do not depend on imports.
    """

    def run(
        *arguments: str, processes: int = 0, timeout: float = 240, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        return warm.command(list(arguments), processes, timeout, environment)

    return run


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """A small tokenized corpus; tests that damage it copy it first."""
    return make_corpus(tmp_path_factory.mktemp("corpus") / "bytes")


@pytest.fixture
def damaged(corpus: Manifest, tmp_path: Path) -> Path:
    """A copy of the corpus, to be damaged."""
    return shutil.copytree(corpus.folder, tmp_path / "corpus")


@pytest.fixture(scope="session")
def s3_session() -> Iterator[S3Server]:
    """One S3 server on loopback, shared by all tests of a worker."""
    with running() as server:
        yield server


@pytest.fixture
def s3(s3_session: S3Server, monkeypatch: pytest.MonkeyPatch) -> S3Server:
    """The S3 server without faults, and with short pauses between retries."""
    s3_session.fail_next, s3_session.stall, s3_session.gets = 0, False, 0
    s3_session.status = "503 Slow Down"
    s3_session.release.clear()
    quick = storage.Retry(attempts=4, timeout_seconds=limit(5), first_seconds=0.001)
    monkeypatch.setattr(storage, "default_retry", lambda: quick)
    return s3_session
