"""I2: killed at any step and resumed with any number of processes, the stream continues exactly."""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.patience import limit
from tests.runs import arguments, ledger, records


@pytest.fixture(scope="module")
def whole(command, corpus, tmp_path_factory):
    """An uninterrupted run on two processes."""
    run_dir = tmp_path_factory.mktemp("whole") / "run"
    done = command(*arguments(corpus.folder, run_dir), processes=2)
    assert done.returncode == 0, done.stderr
    return run_dir


def kill_after(step, corpus, run_dir, checkpoint=True):
    """Starts a run on two processes and kills all of them, with the launcher, once `step` is done.

    A validation after every step prints its number. If requested, it waits for a checkpoint: a fast
    machine is steps ahead of the writer of its first one. For the same reason the steps are slowed
    down, so that the run is not finished before it is killed.
    """
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", "2", "-m", "tests.faults.faulty", "slow_optimizer", "1", "1"]
    command += arguments(corpus.folder, run_dir, validation__every_steps=1)[1:]
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    for line in process.stdout:
        found = re.match(r"step (\d+)  validation", line)
        there = not checkpoint or (run_dir / "checkpoints" / "latest").exists()
        if found and int(found.group(1)) >= step and there:
            break
    # torchrun's ranks are in sessions of their own.
    ranks = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    assert len(ranks) == 2
    for pid in (process.pid, *map(int, ranks)):
        os.kill(pid, signal.SIGKILL)
    process.wait(timeout=limit(60))
    assert len(ledger(run_dir)) < 20


@pytest.mark.parametrize(("processes", "seed"), [(0, 1), (2, 2), (4, 3)])
def test_killed_at_a_random_step_and_resumed(processes, seed, whole, command, corpus, tmp_path):
    run_dir = tmp_path / "run"
    kill_after(random.Random(seed).randint(6, 18), corpus, run_dir)
    done = command(*arguments(corpus.folder, run_dir), processes=processes)
    assert done.returncode == 0, done.stderr
    assert "resuming after step" in done.stdout
    assert ledger(run_dir) == ledger(whole)
    ours = [record["loss"] for record in records(run_dir)]
    theirs = [record["loss"] for record in records(whole)]
    if processes == 2:
        assert ours == theirs  # the same layout: bit for bit
    else:
        assert ours == pytest.approx(theirs, rel=1e-6)


def test_killed_before_the_first_checkpoint_starts_over(whole, command, corpus, tmp_path):
    run_dir = tmp_path / "run"
    kill_after(2, corpus, run_dir, checkpoint=False)
    done = command(*arguments(corpus.folder, run_dir), processes=2)
    assert done.returncode == 0, done.stderr
    assert ledger(run_dir) == ledger(whole)
    assert [r["loss"] for r in records(run_dir)] == [r["loss"] for r in records(whole)]


def test_resumed_under_tensor_parallel(whole, command, corpus, tmp_path):
    run_dir = tmp_path / "run"
    first = command(*arguments(corpus.folder, run_dir, stop_after=10), processes=2)
    assert first.returncode == 0, first.stderr
    done = command(*arguments(corpus.folder, run_dir, parallel__tp=2), processes=2)
    assert done.returncode == 0, done.stderr
    assert ledger(run_dir) == ledger(whole)
    ours, theirs = records(run_dir), records(whole)
    assert [r["loss"] for r in ours] == pytest.approx([r["loss"] for r in theirs], rel=1e-5)


def test_a_finished_run_says_so(whole, command, corpus):
    before = (whole / "metrics.jsonl").read_text()
    done = command(*arguments(corpus.folder, whole), processes=2)
    assert done.returncode == 0
    assert "is finished: all 20 steps are done" in done.stdout
    assert (whole / "metrics.jsonl").read_text() == before


def test_a_finished_run_is_trained_for_longer_in_a_further_stage(whole, command, corpus, tmp_path):
    run_dir = tmp_path / "run"
    shutil.copytree(whole, run_dir)
    longer = arguments(corpus.folder, run_dir, recipe__stages__long__tokens=24576)
    done = command(*longer)
    assert done.returncode == 2, done.stderr
    more = "+recipe.stages.more={seq_len:128,tokens:4096}"
    assert f"leave recipe.stages.long.tokens=20480 and add '{more}'" in done.stderr
    done = command(*arguments(corpus.folder, run_dir), more, processes=2)
    assert done.returncode == 0, done.stderr
    assert "resuming after step 20" in done.stdout
    assert [line["step"] for line in ledger(run_dir)] == list(range(1, 23))
    assert ledger(run_dir)[:20] == ledger(whole)


def test_a_damaged_checkpoint_is_passed_over(whole, command, corpus, tmp_path):
    run_dir = tmp_path / "run"
    first = command(*arguments(corpus.folder, run_dir, stop_after=10), processes=2)
    assert first.returncode == 0, first.stderr
    shard = run_dir / "checkpoints" / "step_10" / "__1_0.distcp"
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1  # no format notices one flipped bit; the manifest does
    shard.write_bytes(content)
    done = command(*arguments(corpus.folder, run_dir), processes=2)
    assert done.returncode == 0, done.stderr
    assert "resuming after step 5" in done.stdout
    assert [r["loss"] for r in records(run_dir)] == [r["loss"] for r in records(whole)]
