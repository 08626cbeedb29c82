"""Trunks and branches small enough for tests."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from conf.entry import compose_settings
from data_pipeline.store.manifest import Manifest
from pretrain.__main__ import COMMANDS
from pretrain.checkpoints.files import write_manifest
from pretrain.checks import sample_order
from pretrain.config import PretrainConfig
from pretrain.editions import plan_editions
from tests.runs import arguments, settings

SHORT = {
    "recipe__stages__short__tokens": 8192,
    "recipe__stages__long__tokens": 8192,
    "validation__every_steps": 0,
    "checkpoint__every_steps": 1,
    "checkpoint__keep_last": 9,
    "health__compare_every_steps": 1,
}
"""Four steps with sequences of 64 tokens and four with 128, a checkpoint after each."""
HERE = [
    *("device=cpu", "logger=files", "report=false", "parallel.micro_batch_tokens=512"),
    *("validation.tokens=2048", "validation.every_steps=0", "checkpoint.every_steps=1"),
    *("checkpoint.keep_last=9", "health.compare_every_steps=1"),
]
"""Settings that a branch does not have from its trunk."""


def branch(trunk: Path | str, step: int, run_dir: Path, *more: str) -> list[str]:
    """The command line of a branch."""
    return ["pretrain", f"branch_from={trunk}@{step}", f"run_dir={run_dir}", *HERE, *more]


def trunk(corpus: Path | str, run_dir: Path, **changes: Any) -> list[str]:
    """The command line of a trunk."""
    return arguments(corpus, run_dir, **SHORT | changes)


def composed(words: Iterable[str]) -> PretrainConfig:
    """The settings of a command line of `branch`."""
    made = compose_settings(COMMANDS["train"], list(words)[1:])
    assert isinstance(made, PretrainConfig)
    return made


def saved(corpus: Manifest, run_dir: Path, steps: Iterable[int], **changes: Any) -> PretrainConfig:
    """Writes the manifests of a run's checkpoints, without weights, and returns its config."""
    config = settings(corpus.folder, run_dir, **SHORT | changes)
    save(config, corpus, steps)
    return config


def save(config: PretrainConfig, corpus: Manifest, steps: Iterable[int]) -> None:
    """Writes the manifests of a run's checkpoints, without weights."""
    numbers = [corpus.edition_count] * len(config.recipe.stages)
    plan, editions = plan_editions(config, corpus, numbers)
    order = sample_order(config, plan)
    for step in steps:
        stage, samples = plan.position(step)
        about = {
            "step": step,
            "tokens": plan.tokens_at(step),
            "position": {"stage": stage, "samples": samples, "name": plan.stages[stage].name},
            "plan": json.loads(order.to_json()),
            "order": order.fingerprint,
            "model": asdict(config.model),
            "editions": editions,
            "data": editions[0]["data"],
            "config": OmegaConf.to_container(OmegaConf.structured(config)),
            "files": {},
        }
        folder = Path(config.run_dir) / "checkpoints" / f"step_{step}"
        folder.mkdir(parents=True)
        write_manifest(folder, about)
