"""A training run small enough for tests, and how to start it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from conf.overrides import compose_command, store_schema
from pretrain.config import PretrainConfig

SETTINGS = {
    "device": "cpu",
    "precision": "fp32",
    "logger": "files",
    "report": False,  # seconds at the end of each run
    "model": "demo_12m",
    "model.vocab_size": 260,
    "model.hidden_size": 64,
    "model.intermediate_size": 96,
    "model.num_layers": 2,
    "model.sliding_window": 24,
    "model.max_seq_len": 256,
    "recipe": "demo",
    "recipe.global_batch_tokens": 2048,
    "recipe.stages.short.seq_len": 64,
    "recipe.stages.short.tokens": 20480,
    "recipe.stages.long.seq_len": 128,
    "recipe.stages.long.tokens": 20480,
    "optim": "adamw_demo",
    "optim.warmup_tokens": 4096,
    "optim.learning_rate": 0.01,
    "parallel.micro_batch_tokens": 512,
    "validation.tokens": 2048,
    "validation.every_steps": 10,
    "checkpoint.every_steps": 5,
}
"""Twenty steps, half with sequences of 64 tokens and half with 128, and a window of 24."""


def arguments(corpus: Path | str, run_dir: Path, **changes: Any) -> list[str]:
    """Returns the command line of a run; `changes` name keys with `__` for the dots."""
    settings = SETTINGS | {"data.folder": corpus, "run_dir": run_dir, "name": run_dir.name}
    settings |= {key.replace("__", "."): value for key, value in changes.items()}
    return ["pretrain", *(f"{key}={'null' if v is None else v}" for key, v in settings.items())]


def settings(corpus: Path | str, run_dir: Path, **changes: Any) -> PretrainConfig:
    """Returns the config that the same command line composes, for a run in this process."""
    store_schema("pretrain", PretrainConfig)
    composed = compose_command("pretrain", arguments(corpus, run_dir, **changes)[1:])
    made = OmegaConf.to_object(composed)
    assert isinstance(made, PretrainConfig)
    return made


def records(run_dir: Path, kind: str = "train") -> list[dict[str, Any]]:
    """Returns the records of a kind in metrics.jsonl."""
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    return [record for record in map(json.loads, lines) if record["kind"] == kind]


def ledger(run_dir: Path) -> list[dict[str, Any]]:
    """Returns the records of ledger.jsonl."""
    return [json.loads(line) for line in (run_dir / "ledger.jsonl").read_text().splitlines()]
