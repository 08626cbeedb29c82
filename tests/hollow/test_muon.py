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


@pytest.mark.parametrize("name", CASES)
def test_a_step_of_muon(name, rehearse):
    plain = rehearse(**CASES[name])
    run = rehearse(**CASES[name], **MUON)
    print(
        name,
        run.step.collectives - plain.step.collectives,
        run.step.collective_bytes,
        plain.step.collective_bytes,
    )
    print(run.step.products - plain.step.products)
    print(run.step.kernels - plain.step.kernels, plain.step.kernels - run.step.kernels)
    print(run.loop.stalls(), run.syncs, run.step.stalls(), run.peak_bytes, plain.peak_bytes)
