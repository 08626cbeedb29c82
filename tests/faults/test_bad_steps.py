"""Losses and gradients that are not finite, and spikes: skipped, or gone back from."""

from __future__ import annotations

import math

import pytest
import torch

from pretrain.health.bad_steps import LEAST_STEPS, NOT_FINITE, SPIKE, BadSteps, robust_limit
from pretrain.health.config import HealthConfig
from pretrain.optim.muon import Muon, MuonOptions
from tests.runs import arguments, ledger, records


def record(step, loss, **more):
    return {"kind": "train", "step": step, "stage": "a", "loss": loss, "grad_norm": 1.0, **more}


def test_the_limit_is_that_of_the_robust_score():
    values = [5.0, 1.0, 3.0, 2.0, 4.0]  # median 3, deviations 2, 2, 0, 1, 1
    assert robust_limit(values, 10) == pytest.approx(3 + 10 * 1.4826)
    assert robust_limit([2.0] * 5, 10) == pytest.approx(2 + 10 * 0.02)
    assert robust_limit([*values, 1e9, -1e9], 10) == pytest.approx(3 + 10 * 1.4826 * 2)


def test_limits_forget_bad_steps_other_stages_and_what_some_ranks_know_already():
    guard = BadSteps(HealthConfig(spike_score=10), 1)
    for step in range(1, LEAST_STEPS + 1):
        guard.on_record(record(step, 2.0))
    assert guard.limits("a", LEAST_STEPS + 1) == ()  # it may be judged before the last is known
    expected = guard.limits("a", LEAST_STEPS + 2)
    assert expected == pytest.approx((2.2, 1.1))
    guard.on_record(record(LEAST_STEPS + 1, 500.0))
    guard.on_record(record(LEAST_STEPS + 2, 500.0, bad="spike"))
    assert guard.limits("a", LEAST_STEPS + 2) == expected
    assert guard.limits("b", LEAST_STEPS + 2) == ()


@pytest.mark.parametrize(
    ("loss", "norm", "verdict"),
    [
        (2.1, 1.05, 0.0),
        (2.3, 1.0, SPIKE),
        (2.0, 1.2, SPIKE),
        (math.nan, 1.0, NOT_FINITE),
        (2.0, math.inf, NOT_FINITE),
        (math.inf, math.nan, NOT_FINITE),
    ],
)
def test_verdicts(loss, norm, verdict):
    for spikes in ("log", "skip"):
        guard = BadSteps(HealthConfig(spike_score=10, spikes=spikes), 1)
        for step in range(1, LEAST_STEPS + 2):
            guard.on_record(record(step, 2.0))
        step = LEAST_STEPS + 3
        found = guard.judge("a", step, torch.tensor(loss), torch.tensor(norm))
        assert found == verdict
        skipped = verdict == NOT_FINITE or (verdict == SPIKE and spikes == "skip")
        assert guard.skips(found) == skipped
        said = guard.describe("a", step, verdict, loss, norm)
        assert ("skipped" in said) == skipped
        assert ("bad" in said) == (verdict > 0)


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_a_step_that_is_left_out_changes_no_bit(name):
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(8, 4))
    groups = [{"params": [weight], "weight_decay": 0.1}]
    if name == "adamw":
        optimizer: torch.optim.Optimizer = torch.optim.AdamW(groups, lr=0.1, fused=True)
    else:
        groups[0]["muon"] = True
        optimizer = Muon(
            groups, lr=0.1, betas=(0.9, 0.95), eps=1e-8, fused=True, options=MuonOptions()
        )
    for bad in (0.0, 1.0, 0.0, 1.0):
        weight.grad = torch.full_like(weight, math.nan) if bad else torch.randn(8, 4)
        state = {k: v.clone() for k, v in optimizer.state[weight].items() if v.ndim}
        before = weight.detach().clone()
        optimizer.found_inf = torch.tensor(bad)  # type: ignore[attr-defined]
        optimizer.step()
        assert torch.equal(before, weight) == bool(bad)
        for key, value in state.items():
            assert torch.equal(value, optimizer.state[weight][key]) == bool(bad)


def test_one_ranks_nan_is_skipped_on_all(command, corpus, tmp_path):
    runs = []
    for fault, rank in (("nan_loss", 1), ("inf_gradient", 0)):
        runs.append(tmp_path / fault)
        training = arguments(corpus.folder, runs[-1], stop_after=8)[1:]
        done = command("tests.faults.faulty", fault, str(rank), "5", *training, processes=2)
        assert done.returncode == 0, done.stderr
        skipped = {line["step"]: line["skipped"] for line in ledger(runs[-1]) if "skipped" in line}
        assert list(skipped) == [5]
        assert "gradient norm nan" in skipped[5]
        assert all(math.isfinite(r["loss"]) for r in records(runs[-1]) if r["step"] != 5)
    after = [[(r["loss"], r["grad_norm"]) for r in records(run)[5:]] for run in runs]
    assert len(after[0]) == 3
    assert after[0] == after[1]


LONG = {
    "recipe__stages__short__tokens": 2048 * 28,
    "recipe__stages__long__tokens": 2048 * 2,
    "validation__every_steps": 0,
    "health__spikes": "rewind",
    "health__rewind_after": 2,
    "checkpoint__every_steps": 1,  # a save is under way when a run goes back
    "checkpoint__keep_last": 4,
}


def test_spikes_in_a_row_are_gone_back_from_and_the_data_left_out(command, corpus, tmp_path):
    runs = {}
    for name, stops in (("whole", (None,)), ("between", (23, None)), ("after", (26, None))):
        runs[name] = tmp_path / name
        for stop in stops:
            training = arguments(corpus.folder, runs[name], stop_after=stop, **LONG)
            done = command("tests.faults.faulty", "spike", "0", "22-23", *training[1:])
            assert done.returncode == 0, done.stderr
        (event,) = [r for r in records(runs[name], "event") if r["event"] == "rewind"]
        assert (event["step"], event["to_step"]) == (24, 21)
        assert "steps 22 to 23 were bad (spike)" in event["cause"]
        lines = ledger(runs[name])
        assert [line["step"] for line in lines] == list(range(1, 31))
        assert [line["step"] for line in lines if "skipped" in line] == [22, 23, 24]
    ledgers = [ledger(run) for run in runs.values()]
    losses = [[r["loss"] for r in records(run)] for run in runs.values()]
    assert ledgers[0] == ledgers[1] == ledgers[2]
    assert losses[0] == losses[1] == losses[2]
    assert losses[0][21] > 50 > 6 > losses[0][24]


def test_a_run_that_does_not_get_on_gives_up(command, corpus, tmp_path):
    changes = LONG | {"health__rewinds_at_most": 1}
    training = arguments(corpus.folder, tmp_path / "run", **changes)
    done = command("tests.faults.faulty", "nan_loss", "0", "7-30", *training[1:])
    assert done.returncode == 86, done.stderr
    assert "steps 10 to 11 were bad (not finite), after 1 rewinds within 128" in done.stderr


def test_no_checkpoint_to_go_back_to(command, corpus, tmp_path):
    training = arguments(corpus.folder, tmp_path / "run", **LONG)
    done = command("tests.faults.faulty", "nan_loss", "0", "1-30", *training[1:])
    assert done.returncode == 86, done.stderr
    assert "no complete checkpoint from before step 1" in done.stderr
