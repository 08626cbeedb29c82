"""Every layout, precision, backend, checkpointing mode and optimizer trains, eager."""

from __future__ import annotations

from typing import Any

import pytest

MUON = {"optim": "muon", "optim__learning_rate": 0.01, "optim__warmup_tokens": 4096}
CASES: dict[str, dict[str, Any]] = {
    "one": {},
    "fsdp": {"ranks": 4},
    "hsdp": {"ranks": 4, "parallel__dp_replicate": 2},
    "tp": {"ranks": 4, "parallel__tp": 2},
    "cp": {"ranks": 4, "parallel__cp": 2},
    "tp and cp": {"ranks": 8, "parallel__tp": 2, "parallel__cp": 2},
    "full": {"ranks": 2, "parallel__activation_checkpointing": "full"},
    "selective": {"ranks": 2, "parallel__activation_checkpointing": "selective"},
    "muon": {"ranks": 2, **MUON},
    "muon and tp": {"ranks": 4, "parallel__tp": 2, **MUON},
    "normuon": {"ranks": 2, **MUON, "optim": "normuon"},
    "z loss": {"objective": "z_loss"},
    "fp32": {"precision": "fp32", "parallel__attention": "sdpa"},
}
BACKENDS = ("sdpa", "cudnn", "varlen", "flex")
for backend in BACKENDS:
    CASES[backend] = {"parallel__attention": backend}
    CASES[f"{backend} and cp"] = {
        "ranks": 2,
        "parallel__cp": 2,
        "parallel__attention": backend,
    }
    CASES[f"{backend} and cp, no window"] = {
        **CASES[f"{backend} and cp"],
        "model__sliding_window": None,
    }


@pytest.mark.parametrize("name", CASES)
def test_a_layout_trains(name, rehearse):
    run = rehearse(**CASES[name])
    assert len(run.records()) == 3
    assert run.step.kernels.total() > 100
    assert run.whole.refused == []
    assert run.step.stalls() == []
