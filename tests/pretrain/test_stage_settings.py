"""A run with its own batch, ramp, learning rate and precision per stage."""

from __future__ import annotations

import pytest

from tests.runs import arguments, ledger, records

SETTINGS = {
    "optim__schedule": "constant",
    "optim__warmup_tokens": 0,
    "recipe__stages__short__batch_ramp": "{start:1024,increment:1024,tokens:4096}",
    "recipe__stages__long__global_batch_tokens": 4096,
    "recipe__stages__long__precision": "fp8",
    "recipe__stages__long__learning_rate": "{shape:linear,end:0.001}",
    "precision": "bf16",
}
STEPS = [1024] * 4 + [2048] * 8 + [4096] * 5


@pytest.fixture(scope="module")
def whole(command, corpus, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("stages") / "run"
    done = command(*arguments(corpus.folder, run_dir, **SETTINGS))
    assert done.returncode == 0, done.stderr
    return run_dir


def test_each_stage_has_its_own(whole):
    lines = records(whole)
    assert [line["batch_tokens"] for line in lines] == STEPS
    assert [line["tokens"] for line in lines] == [sum(STEPS[: n + 1]) for n in range(len(STEPS))]
    rates = [line["learning_rate"] for line in lines]
    assert rates[:12] == [0.01] * 12
    assert rates[12:] == pytest.approx([0.01 - 0.009 * n / 5 for n in range(1, 6)])
    assert lines[-1]["loss"] < lines[0]["loss"] - 0.5
    [change] = [e for e in records(whole, "event") if e["event"] == "precision"]
    assert (change["step"], change["precision"]) == (12, "fp8")


def test_two_processes_resume_within_each_stage(command, corpus, whole, tmp_path):
    """The run is resumed within the ramp and within the stage of another precision."""
    run_dir = tmp_path / "run"
    for end in (3, 14, 17):
        ranks = 1 if end == 17 else 2
        args = arguments(corpus.folder, run_dir, stop_after=end, **SETTINGS)
        done = command(*args, processes=ranks)
        assert done.returncode == 0, done.stderr
    assert ledger(run_dir) == ledger(whole)
    ours, theirs = ([line["loss"] for line in records(folder)] for folder in (run_dir, whole))
    assert ours == pytest.approx(theirs, rel=0.02)
    assert ours[0] == pytest.approx(theirs[0], rel=1e-5)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            {"precision": "fp32"},
            "recipe.stages.long.precision=fp8: a stage cannot switch between fp32 and",
        ),
        (
            {"recipe__stages__long__precision": "fp9"},
            "recipe.stages.long.precision=fp9: unknown choice (did you mean 'fp8'?)",
        ),
    ],
)
def test_what_cannot_be_is_refused(command, corpus, tmp_path, change, sentence):
    done = command(*arguments(corpus.folder, tmp_path / "run", **SETTINGS | change))
    assert done.returncode == 2
    assert sentence in done.stderr
    assert not (tmp_path / "run").exists()
