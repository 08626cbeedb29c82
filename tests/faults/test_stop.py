"""A run that is asked to stop: by signals to a rank or the launcher, a stop file, a time limit."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from launch.slurm.manage import read_status
from tests.conftest import ROOT
from tests.patience import limit
from tests.runs import arguments, ledger, records

STEPS = {"checkpoint__every_steps": 0, "validation__every_steps": 0}


def outcome(run_dir):
    return json.loads((run_dir / "outcome.json").read_text())


def saved(run_dir):
    return sorted(path.name for path in (run_dir / "checkpoints").glob("step_*"))


@pytest.fixture(scope="module")
def whole(command, corpus, tmp_path_factory):
    """The same run, not stopped."""
    run_dir = tmp_path_factory.mktemp("whole") / "run"
    done = command(*arguments(corpus.folder, run_dir, **STEPS), processes=2)
    assert done.returncode == 0, done.stderr
    assert outcome(run_dir)["code"] == 0
    return run_dir


def same_run(one, other):
    """The two were trained alike, to the bit."""
    assert ledger(one) == ledger(other)
    numbers = [[(r["loss"], r["grad_norm"]) for r in records(run)] for run in (one, other)]
    assert numbers[0] == numbers[1]


@pytest.mark.parametrize(("fault", "rank"), [("SIGTERM", 1), ("SIGUSR1", 0), ("SIGHUP", 1)])
def test_a_signal_to_one_rank_stops_all_after_one_step(
    fault, rank, whole, command, corpus, tmp_path
):
    run_dir = tmp_path / "run"
    training = arguments(corpus.folder, run_dir, **STEPS)
    done = command("tests.faults.faulty", fault, str(rank), "4", *training[1:], processes=2)
    assert f"stopped after step 5 ({fault} on rank {rank}). The same command" in done.stderr
    assert "exitcode  : 85" in done.stderr
    assert outcome(run_dir)["code"] == 85
    assert saved(run_dir) == ["step_5"]
    assert [record["step"] for record in records(run_dir)] == [1, 2, 3, 4, 5]
    if fault == "SIGTERM":  # what has stopped a run is not in its checkpoint
        done = command(*training, processes=2)
        assert done.returncode == 0, done.stderr
        same_run(run_dir, whole)


def test_a_process_alone_ends_with_85_and_a_second_signal_ends_it_at_once(
    command, corpus, tmp_path
):
    for fault, code, steps in (("SIGINT", 85, ["step_4"]), ("SIGTERM_twice", 143, [])):
        run_dir = tmp_path / fault
        training = arguments(corpus.folder, run_dir, **STEPS)
        done = command("tests.faults.faulty", fault, "0", "4", *training[1:])
        assert done.returncode == code, done.stderr
        assert saved(run_dir) == steps


def test_a_stop_file_stops_until_it_is_removed(command, corpus, tmp_path):
    run_dir = tmp_path / "run"
    training = arguments(corpus.folder, run_dir, **STEPS)
    done = command("tests.faults.faulty", "stop_file", "0", "2", *training[1:])
    assert done.returncode == 85, done.stderr
    assert "STOP). The same command resumes the run" in done.stderr
    done = command(*training)
    assert done.returncode == 2
    assert "STOP exists, which stops the run. Remove the file" in done.stderr


def test_stop_after_saves_and_is_not_the_end(command, corpus, tmp_path):
    """A run ended early has a checkpoint, whatever the interval, and says that it was stopped."""
    run_dir = tmp_path / "run"
    training = arguments(corpus.folder, run_dir, **STEPS)
    done = command(*training, "stop_after=3", processes=2)
    assert done.returncode == 0, done.stderr
    assert "stopped after step 3 of 20 (stop_after=3). The same command without" in done.stdout
    assert saved(run_dir) == ["step_3"]
    assert (outcome(run_dir)["code"], outcome(run_dir)["cause"]) == (0, "stopped")
    assert read_status(run_dir).state == "stopped"
    before = (run_dir / "metrics.jsonl").read_bytes()
    again = command(*training, "stop_after=3")  # there is nothing left to do
    assert (again.returncode, outcome(run_dir)["cause"]) == (0, "stopped")
    assert len(records(run_dir)) == 3
    assert (run_dir / "metrics.jsonl").read_bytes().startswith(before)
    done = command(*training, processes=2)
    assert "resuming after step 3" in done.stdout
    assert (outcome(run_dir)["cause"], read_status(run_dir).state) == ("finished", "finished")
    assert saved(run_dir) == ["step_20", "step_3"]


def test_a_time_limit(command, corpus, tmp_path):
    run_dir = tmp_path / "run"
    done = command(*arguments(corpus.folder, run_dir, health__time_limit_minutes=1e-6, **STEPS))
    assert done.returncode == 85, done.stderr
    assert "stopped after step 1 (time limit)" in done.stderr
    assert saved(run_dir) == ["step_1"]


@pytest.mark.slow
@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGKILL])
def test_a_signal_to_the_launcher(sent, corpus, tmp_path):
    """A launcher that is killed takes the job's store with it, and the ranks find out."""
    run_dir = tmp_path / "run"
    training = arguments(corpus.folder, run_dir, recipe__stages__short__tokens=2048 * 300, **STEPS)
    launcher = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
    process = subprocess.Popen(
        [sys.executable, "-m", *launcher, *training],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + limit(120)
    while not (run_dir / "metrics.jsonl").exists() or not records(run_dir):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(sent)
    _, said = process.communicate(timeout=limit(60))  # until the ranks have closed it too
    assert process.returncode != 0
    assert outcome(run_dir)["code"] == (85 if sent == signal.SIGTERM else 65), said
    whole = [name for name in saved(run_dir) if ".tmp" not in name]
    assert len(whole) == (1 if sent == signal.SIGTERM else 0)
    assert len(records(run_dir)) < 300
