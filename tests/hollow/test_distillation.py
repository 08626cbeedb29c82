"""A student learns next to its teacher without a wait, in several layouts."""

from __future__ import annotations

from typing import Any

import pytest

from tests.hollow.cases import MUON
from tests.hollow.checks import check_never_waits
from tests.model.shapes import tiny
from tests.pretrain.teacher_cache.taught import make_teacher

TEACHER = tiny(
    vocab_size=272,
    hidden_size=192,
    intermediate_size=384,
    num_layers=3,
    num_heads=6,
    num_kv_heads=2,
    head_dim=32,
    max_seq_len=256,
    sliding_window=64,
)
"""Wider and deeper than the student, with another window."""
CASES: dict[str, dict[str, Any]] = {
    "one": {},
    "fsdp": {"ranks": 4},
    "tp": {"ranks": 2, "parallel__tp": 2},
    "cp": {"ranks": 2, "parallel__cp": 2},
    "compiled": {"parallel__compile": "true"},
    "compiled, muon": {"parallel__compile": "true", "ranks": 2, **MUON},
}


@pytest.fixture(scope="module")
def teacher(corpus, tmp_path_factory):
    return make_teacher(tmp_path_factory.mktemp("teacher") / "hf", corpus, TEACHER)


@pytest.mark.parametrize("case", CASES)
def test_a_student_learns_next_to_its_teacher(case, teacher, rehearse):
    keys = {"objective": "distill", "objective__teacher": teacher, "objective__top_k": 16}
    run = rehearse(**keys, **CASES[case])
    assert len(run.records()) == 3
    assert run.whole.refused == []
    check_never_waits(run)
    forward = run.step.kernels["flash_fwd_kernel"]
    backward = run.step.kernels["flash_bwd_dq_dk_dv_loop_seqk_parallel_kernel"]
    layers = run.config.model.num_layers
    assert backward > 0
    assert forward * layers == backward * (layers + TEACHER.num_layers)
