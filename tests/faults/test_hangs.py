"""A rank that stops, hangs or is slow: named, and the job ends in bounded time."""

from __future__ import annotations

import json
import pickle

import pytest

from pretrain.health.stragglers import slow
from pretrain.health.watchdog import who_is_late
from tests.patience import limit
from tests.runs import arguments, records

QUICK = {"validation__every_steps": 0, "checkpoint__every_steps": 0}
SOON = {"TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "2"}


@pytest.mark.parametrize(("fault", "said"), [("SIGSTOP", "did not respond"), ("sleep", None)])
def test_a_rank_that_does_not_come_is_named(fault, said, command, corpus, tmp_path):
    run_dir = tmp_path / "run"
    training = arguments(corpus.folder, run_dir, health__step_seconds=limit(4), **QUICK)
    done = command(
        "tests.faults.faulty", fault, "1", "4", *training[1:], processes=2, timeout=120, **SOON
    )
    assert done.returncode != 0
    outcome = json.loads((run_dir / "outcome.json").read_text())
    assert outcome["code"] == 87, done.stderr
    assert "step 4 hangs: rank 1 " + (said or "is behind the others, in step 4") in outcome["cause"]
    assert "error: step 4 hangs: rank 1" in done.stderr
    assert "exitcode  : 87" in done.stderr
    hang = run_dir / "logs" / "hang"
    about = json.loads((hang / "rank_0.json").read_text())
    assert about["last"][-1]["profiling_name"].startswith("gloo:")
    assert "train_step" in (hang / "rank_0.stacks").read_text()
    record = pickle.loads((run_dir / "logs" / "flight_recorder_0").read_bytes())
    assert record["entries"][-1]["profiling_name"].startswith("gloo:")
    if fault == "sleep":
        assert "before_step" in (hang / "rank_1.stacks").read_text()


def test_who_is_late():
    def about(collectives, doing="step 3"):
        return {"collectives": collectives, "doing": doing}

    assert who_is_late({0: about(9), 1: None, 2: about(9)}) == "rank 1 did not respond"
    answers = {0: about(9), 1: about(9), 2: about(7, "the work after step 2")}
    assert who_is_late(answers) == "rank 2 is behind the others, in the work after step 2"
    assert who_is_late({0: about(7), 1: about(7), 2: about(9)}).startswith("ranks 0, 1 is behind")
    assert who_is_late({0: about(9), 1: about(9)}) == "no rank is behind the others"


def test_slow_ranks():
    usual = [0.1, 1.0, 10.0]
    assert slow([usual] * 4, 2.0) == []
    assert slow([usual, usual, [0.1, 2.5, 10.0], usual], 2.0) == [(2, "optimizer")]
    assert slow([[3.0, 1.0, 10.0], usual], 2.0) == [(0, "data")]
    assert slow([[0.4, 1.0, 10.0], usual], 2.0) == []  # 3% of the time
    assert slow([], 2.0) == []


def test_a_straggler_is_named_and_the_run_goes_on(command, corpus, tmp_path):
    run_dir = tmp_path / "run"
    training = arguments(corpus.folder, run_dir, health__straggler_every_steps=4, **QUICK)
    done = command("tests.faults.faulty", "slow_optimizer", "1", "1", *training[1:], processes=2)
    assert done.returncode == 0, done.stderr
    found = [e for e in records(run_dir, "event") if e["event"] == "straggler"]
    # What else runs on this machine may make any rank slow now and then.
    assert [(event["rank"], event["at"]) for event in found].count((1, "optimizer")) >= 3
    assert "warning: rank 1 is slow at optimizer: " in done.stdout
