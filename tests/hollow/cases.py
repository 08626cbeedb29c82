"""Runs of the lane, as keywords of `rehearse`."""

from __future__ import annotations

from typing import Any

Case = dict[str, Any]
MUON: Case = {"optim": "muon", "optim__learning_rate": 0.01, "optim__warmup_tokens": 4096}
BACKENDS = ("sdpa", "cudnn", "varlen", "flex")

EAGER: dict[str, Case] = {
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
    "ema": {"ranks": 2, "ema__decay": 0.9, "ema__every_steps": 1},
    "ema on the host": {
        "ranks": 2,
        "ema__decay": 0.9,
        "ema__every_steps": 1,
        "ema__device": "cpu",
    },
    "fp32": {"precision": "fp32", "parallel__attention": "sdpa"},
}
for _backend in BACKENDS:
    EAGER[_backend] = {"parallel__attention": _backend}
    EAGER[f"{_backend} and cp"] = EAGER[_backend] | {"ranks": 2, "parallel__cp": 2}
    EAGER[f"{_backend} and cp, no window"] = EAGER[f"{_backend} and cp"] | {
        "model__sliding_window": None
    }
"""Every layout, checkpointing mode, optimizer and backend. fp8 is for compiled runs only."""

_COMPILED: dict[str, Case] = {
    "varlen": {},
    "varlen, selective": {"parallel__activation_checkpointing": "selective"},
    "cudnn, selective": {
        "parallel__attention": "cudnn",
        "parallel__activation_checkpointing": "selective",
    },
    "flex, full": {"parallel__attention": "flex", "parallel__activation_checkpointing": "full"},
    "hsdp": {"ranks": 4, "parallel__dp_replicate": 2},
    "async tp": {"ranks": 2, "parallel__tp": 2, "parallel__async_tp": "true"},
    "cp": {"ranks": 2, "parallel__cp": 2},
    "muon": {"ranks": 2, **MUON},
    "fp8": {"precision": "fp8"},
    "fp8_rowwise and tp": {"ranks": 2, "precision": "fp8_rowwise", "parallel__tp": 2},
}
COMPILED = {name: {"parallel__compile": "true"} | case for name, case in _COMPILED.items()}
"""The selection that is compiled: each backend, checkpointing mode, dimension of the mesh, fp8."""

HELD = {
    name: EAGER[name]
    for name in ("one", "fsdp", "tp", "cp", "full", "selective", "muon", "sdpa", "cudnn")
} | {"compiled varlen": COMPILED["varlen"]}
"""The runs whose numbers are held in `numbers/`."""
