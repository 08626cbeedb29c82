"""Micro-batches as CUDA graphs: captured once, then one launch each."""

from __future__ import annotations

from typing import Any

import pytest

from tests.hollow.trace import Trace

CASES: dict[str, dict[str, Any]] = {
    "eager": {},
    "compiled": {"parallel__compile": True},
    "recomputed": {"parallel__activation_checkpointing": "full"},
    "muon": {"optim": "muon", "optim__learning_rate": 0.01, "optim__warmup_tokens": 4096},
}
MICRO_BATCHES = 8
"""Per step, in the runs of `rehearse`."""


@pytest.mark.parametrize("name", CASES)
def test_each_micro_batch_is_one_launch(name, rehearse):
    run = rehearse(parallel__cuda_graphs=True, **CASES[name])
    assert run.whole.refused == []
    assert run.loop.stalls() == run.step.stalls() == []
    launched = run.step.lines.count("graph launch")
    assert launched == MICRO_BATCHES
    # All micro-batches are of one kind; the second of them is captured.
    assert run.whole.lines.count("capture begin") == run.whole.lines.count("capture end") == 1
    capture = run.whole.lines.index("capture begin")
    captured = Trace(run.whole.lines[capture : run.whole.lines.index("capture end")]).kernels
    assert captured.total() > 50
    # The rest of a step is its loss, the norm of the gradients and the optimizer.
    outside = 200 if name == "muon" else 100
    assert run.step.kernels.total() < outside
