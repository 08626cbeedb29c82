"""Muon on sharded matrices: few messages, no wait, and three matrix products per iteration."""

from __future__ import annotations

from typing import Any

import pytest

MUON = {"optim": "muon", "optim__learning_rate": 0.01, "optim__warmup_tokens": 4096}
CASES: dict[str, dict[str, Any]] = {
    "one": {},
    "fsdp": {"ranks": 4},
    "hsdp": {"ranks": 4, "parallel__dp_replicate": 2},
    "tp": {"ranks": 2, "parallel__tp": 2},
    "fsdp, compiled": {"ranks": 4, "parallel__compile": True},
}
SHAPES, ITERATIONS = 4, 5
"""q and o, k and v, gate and up, down: the matrices of each fit into one round."""


@pytest.mark.parametrize("name", CASES)
def test_a_step_orthogonalizes_few_stacks_without_a_wait(name, rehearse):
    run = rehearse(**CASES[name], **MUON)
    assert run.step.stalls() == []
    assert run.whole.refused == []
    assert [sync for sync in run.syncs if "/optim/" in sync] == []
    batched = sum(n for shape, n in run.step.products.items() if shape.startswith("batched"))
    # Rank 0 owns matrices of at least one shape, and no shape needs more than one round.
    assert batched % (3 * ITERATIONS) == 0
    assert 3 * ITERATIONS <= batched <= 3 * ITERATIONS * SHAPES
    ranks = CASES[name].get("ranks", 1)
    # An all-to-all is one message per rank, to the owners and back, for each shape.
    messages = 2 * SHAPES * ranks if ranks > 1 else 0
    assert run.step.collectives["send"] == run.step.collectives["receive"] == messages
    if ranks == 1:
        assert batched == 3 * ITERATIONS * SHAPES
