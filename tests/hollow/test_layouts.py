"""Every layout, precision, backend, checkpointing mode and optimizer trains without a wait.

Where the numbers of a step are held as text (`numbers.py`), they are compared too.
"""

from __future__ import annotations

import json

import pytest
import torch

from model.attention.backends import usable_backends
from tests.hollow.cases import COMPILED, EAGER, HELD
from tests.hollow.checks import check_never_waits
from tests.hollow.numbers import check_numbers


def check(case, run) -> None:
    assert len(run.records()) == 3
    assert run.step.kernels.total() > 100
    assert run.whole.refused == []
    check_never_waits(run)
    if case in HELD:
        check_numbers(case, run.step, torch.__version__)


@pytest.mark.parametrize("case", EAGER)
def test_an_eager_layout_trains(case, rehearse):
    check(case, rehearse(**EAGER[case]))


@pytest.mark.parametrize("case", COMPILED)
def test_a_compiled_layout_trains(case, rehearse):
    run = rehearse(**COMPILED[case])
    check(f"compiled {case}", run)
    assert any(name.startswith("triton_") for name in run.step.kernels)
    assert "recompile" not in [event["event"] for event in run.records("event")]


def test_both_stages_train_compiled_and_with_another_precision(rehearse):
    """The window of the second stage is longer, and its linears multiply fp8."""
    run = rehearse(steps=13, parallel__compile="true", recipe__stages__long__precision="fp8")
    assert [record["stage"] for record in run.records()] == ["short"] * 10 + ["long"] * 3
    assert run.whole.refused == []
    assert run.step.stalls() == []


def test_attention_is_chosen_by_timing(rehearse, tmp_path):
    rehearse(steps=1, parallel__attention="auto")
    env = json.loads((tmp_path / "run" / "env.json").read_text())
    for timing in env["attention"].values():
        assert timing["failed"] == {}
        assert set(timing["seconds"]) == set(usable_backends(torch.device("cuda"), torch.bfloat16))


def test_a_profile_and_a_memory_snapshot_are_written(rehearse, tmp_path):
    rehearse(steps=4, profile__steps="[2,3]", profile__memory="true")
    folder = tmp_path / "run" / "profile"
    assert (folder / "memory_steps_2-3_rank_0.pickle").stat().st_size > 1000
    assert (folder / "trace_steps_2-3_rank_0.json.gz").exists()


def test_the_layout_is_chosen(rehearse):
    run = rehearse(ranks=8, parallel="auto")
    parallel = run.config.parallel
    assert parallel.activation_checkpointing in ("none", "selective", "full")
    assert isinstance(parallel.micro_batch_tokens, int)
    assert torch.cuda.mem_get_info()[1] > run.peak_bytes
