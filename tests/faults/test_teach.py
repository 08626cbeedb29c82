"""Teaching that is killed, and caches that are damaged before or while a run reads them."""

from __future__ import annotations

import random
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from data_pipeline.store.manifest import Manifest
from tests.pretrain.teacher_cache.taught import SHORT, arguments, files_of, make_teacher
from tests.runs import arguments as run_arguments

TRIALS = 6
Command = Callable[..., CompletedProcess[str]]


@pytest.fixture(scope="module")
def teacher(corpus: Manifest, tmp_path_factory) -> Path:
    return make_teacher(tmp_path_factory.mktemp("teacher") / "hf", corpus)


class Teaching:
    """The command that teaches four steps, which may be killed at an event of `killed`."""

    def __init__(self, command: Command, teacher: Path, corpus: Manifest) -> None:
        self.command, self.teacher, self.corpus = command, teacher, corpus

    def __call__(
        self, out: Path, killed_at: int | None = None, processes: int = 0
    ) -> CompletedProcess[str]:
        keys = arguments(self.teacher, self.corpus.folder, out, unit_tokens=2048, **SHORT)
        fault = [] if killed_at is None else ["tests.faults.killed", str(killed_at)]
        return self.command(*fault, "pretrain", "teach", *keys, processes=processes)


@pytest.fixture(scope="module")
def teaching(warm, teacher, corpus) -> Teaching:
    def command(*words: str, processes: int = 0) -> CompletedProcess[str]:
        return warm.command(list(words), processes, 240, {})

    return Teaching(command, teacher, corpus)


@pytest.fixture(scope="module")
def whole(teaching, tmp_path_factory) -> tuple[Path, int]:
    """The cache of a process that is not killed, and the number of its events."""
    out = tmp_path_factory.mktemp("whole") / "cache"
    done = teaching(out, 0)
    assert done.returncode == 0, done.stderr
    events = re.search(r"events: (\d+)", done.stdout)
    assert events is not None
    return out, int(events[1])


@pytest.mark.timeout(600)
def test_teaching_killed_at_random_writes_the_same_bytes_afterwards(teaching, whole, tmp_path):
    """Each trial is killed twice, and then ends, every other time as two processes."""
    expected, events = files_of(whole[0]), whole[1]
    draw = random.Random(0)
    for trial in range(TRIALS):
        out = tmp_path / str(trial) / "cache"
        for _ in range(2):
            done = teaching(out, draw.randint(1, events))
            assert done.returncode in (-signal.SIGKILL, 0), done.stderr
            assert not out.exists() or files_of(out) == expected
        done = teaching(out, processes=2 * (trial % 2))
        assert done.returncode == 0, done.stderr
        assert files_of(out) == expected
        assert [path.name for path in out.parent.iterdir()] == [out.name]


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ("flip", r"stage_0/000000000032\.bin: checksum mismatch in the answers to samples 32 to 6"),
        ("cut", r"stage_1/000000000000\.bin has \d+ bytes instead of \d+\. The file is truncated"),
        ("partial", r"partial is unfinished work\. Run python -m pretrain teach"),
        ("seed", r"this run reads other contexts, because it was made with seed=0, not 1"),
        ("tokenizer", r"its answers are ids of another tokenizer"),
    ],
)
def test_a_run_refuses_a_damaged_or_foreign_cache(
    command, corpus, whole, tmp_path, changes, message
):
    """The exit code is that of bad input, as for a damaged shard."""
    cache = shutil.copytree(whole[0], tmp_path / "cache")
    keys = {**SHORT, "seed": int(changes == "seed")}
    damage(cache, changes)
    done = command(
        *run_arguments(corpus.folder, tmp_path / "run", objective="distill", **keys),
        f"objective.teacher_cache={cache}",
        "objective.top_k=8",
    )
    assert done.returncode == 2, done.stderr
    assert re.search(message, done.stderr), done.stderr


def damage(cache: Path, kind: str) -> None:
    """Damages a cache in one of the ways of the test above."""
    if kind == "flip":
        path = cache / "stage_0" / "000000000032.bin"
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 16
        path.write_bytes(content)
    elif kind == "cut":
        path = cache / "stage_1" / "000000000000.bin"
        path.write_bytes(path.read_bytes()[:-100])
    elif kind == "partial":
        cache.rename(cache.with_name("cache.partial"))
    elif kind == "tokenizer":
        path = cache / "manifest.json"
        path.write_text(re.sub(r'"tokenizer": "\w{8}', '"tokenizer": "00000000', path.read_text()))
