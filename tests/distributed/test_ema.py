"""The running average in real processes: killed, resumed, resharded, skipped and rewound."""

from __future__ import annotations

import shutil

import pytest
import torch

from pretrain.checkpoints.read import Tensors
from tests.pretrain.branches.trunks import branch
from tests.runs import arguments, records

KEPT = {"checkpoint__every_steps": 5, "checkpoint__keep_last": 9, "validation__every_steps": 5}
EMA = {"ema__decay": 0.9, "ema__every_steps": 2, **KEPT}
FSDP = {"parallel__dp_shard": 2}


def average_of(run_dir, step):
    return dict(Tensors(run_dir / "checkpoints" / f"step_{step}", "hooks.Ema."))


def same_bits(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def train(command, corpus, run_dir, stop_after, processes=2, fault=(), **changes):
    training = arguments(corpus.folder, run_dir, stop_after=stop_after, **changes)
    started = ["tests.faults.faulty", *fault, *training[1:]] if fault else training
    return command(*started, processes=processes)


@pytest.fixture(scope="module")
def whole(command, corpus, tmp_path_factory):
    """An uninterrupted run on two processes."""
    run_dir = tmp_path_factory.mktemp("ema") / "run"
    done = train(command, corpus, run_dir, 12, **FSDP, **EMA)
    assert done.returncode == 0, done.stderr
    return run_dir


def test_the_average_of_a_killed_and_resumed_run_has_the_same_bits(
    whole, command, corpus, tmp_path
):
    run_dir = tmp_path / "run"
    synchronous = {"checkpoint__asynchronous": False}
    done = train(
        command, corpus, run_dir, 12, 2, ("SIGKILL", "all", "9"), **FSDP, **EMA, **synchronous
    )
    assert done.returncode != 0
    assert not (run_dir / "checkpoints" / "step_10").exists()
    done = train(command, corpus, run_dir, 12, **FSDP, **EMA)
    assert done.returncode == 0, done.stderr
    assert "resuming after step 5" in done.stdout
    average = average_of(whole, 12)
    assert average["entries"] == 6
    assert same_bits(average_of(run_dir, 12), average)
    losses = [
        [(r["loss"], r["ema"]["loss"]) for r in records(one, "validation") if "ema" in r]
        for one in (run_dir, whole)
    ]
    assert losses[0] == losses[1]
    assert len(losses[0]) == 2
    assert all(loss != average for loss, average in losses[0])


def test_the_average_changes_no_step_of_the_training(whole, command, corpus, tmp_path):
    done = train(command, corpus, tmp_path / "plain", 12, **FSDP, **KEPT)
    assert done.returncode == 0, done.stderr
    for kind in ("train", "validation"):
        ours, theirs = (
            [r["loss"] for r in records(run_dir, kind)] for run_dir in (whole, tmp_path / "plain")
        )
        assert ours == theirs


@pytest.mark.parametrize(
    "layout",
    [{"parallel__tp": 2}, {"parallel__dp_replicate": 2}, {"parallel__cp": 2}],
    ids=["tp2", "replicate2", "cp2"],
)
def test_the_average_is_resharded_without_changing_a_bit(layout, whole, command, corpus, tmp_path):
    run_dir = tmp_path / "run"
    shutil.copytree(whole, run_dir)
    # The next entry is after step 14, so that step 13 saves what was loaded.
    done = train(command, corpus, run_dir, 13, **layout, **EMA)
    assert done.returncode == 0, done.stderr
    assert "resuming after step 12" in done.stdout
    assert same_bits(average_of(run_dir, 13), average_of(whole, 12))


def test_weights_after_skipped_steps_do_not_enter(command, corpus, tmp_path):
    every = EMA | {"ema__every_steps": 1}
    done = train(command, corpus, tmp_path / "run", 6, 2, ("nan_loss", "1", "4-5"), **FSDP, **every)
    assert done.returncode == 0, done.stderr
    assert [r["step"] for r in records(tmp_path / "run") if "skipped" in r] == [4, 5]
    average = average_of(tmp_path / "run", 6)
    assert average["entries"] == 4
    assert all(value.isfinite().all() for value in average.values())


def test_a_rewind_restores_the_average(command, corpus, tmp_path):
    changes = {
        "recipe__stages__short__tokens": 2048 * 28,
        "validation__every_steps": 0,
        "health__spikes": "rewind",
        "health__rewind_after": 2,
        "checkpoint__every_steps": 1,
        "checkpoint__keep_last": 9,
        "ema__decay": 0.9,
        "ema__every_steps": 1,
    }
    run_dir = tmp_path / "run"
    done = train(command, corpus, run_dir, 24, 0, ("spike", "0", "22-23"), **changes)
    assert done.returncode == 0, done.stderr
    (event,) = [r for r in records(run_dir, "event") if r["event"] == "rewind"]
    assert (event["step"], event["to_step"]) == (24, 21)
    assert same_bits(average_of(run_dir, 24), average_of(run_dir, 21))
    assert not same_bits(average_of(run_dir, 23), average_of(run_dir, 21))


def test_a_run_that_turns_the_average_on_starts_a_new_one(command, corpus, tmp_path):
    run_dir = tmp_path / "run"
    done = train(command, corpus, run_dir, 5, 0, **KEPT)
    assert done.returncode == 0, done.stderr
    done = train(command, corpus, run_dir, 10, 0, **EMA)
    assert done.returncode == 0, done.stderr
    assert "ema.decay was None, now 0.9" in done.stdout
    assert average_of(run_dir, 10)["entries"] == 3


def test_a_branch_continues_the_average_of_its_trunk(whole, command, tmp_path):
    words = branch(whole, 10, tmp_path / "branch", "stop_after=12", "parallel.dp_shard=2")
    done = command(*words, "ema.decay=0.9", "ema.every_steps=2", processes=2)
    assert done.returncode == 0, done.stderr
    assert same_bits(average_of(tmp_path / "branch", 12), average_of(whole, 12))
    (fork,) = records(tmp_path / "branch", "validation")
    (before,) = [one for one in records(whole, "validation") if one["step"] == 10]
    assert (fork["step"], fork["ema"], fork["loss"]) == (10, before["ema"], before["loss"])
