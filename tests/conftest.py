"""Helpers for all tests: real processes with gloo on the CPU, with a timeout."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from data_pipeline.manifest import Manifest
from tests.corpora import make_corpus

ROOT = Path(__file__).parent.parent


def run_command(
    *arguments: str, processes: int = 0, timeout: float = 240, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Runs `python -m ...` (under torchrun with `processes` > 0) from the repository's root."""
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
        timeout=timeout,
    )


@pytest.fixture(scope="session")
def command():
    """`run_command` as a fixture."""
    return run_command


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """A small tokenized corpus; tests that damage it copy it first."""
    return make_corpus(tmp_path_factory.mktemp("corpus") / "bytes")
