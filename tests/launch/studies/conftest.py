"""A study of tiny runs, and run folders as the trainer writes them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from conf.files import write_text
from launch.studies.base_command import BaseCommand
from launch.studies.commands import RunCommand
from launch.studies.config import cluster_of, kind_of
from launch.studies.costs import Costs
from launch.studies.study import Study
from tests import runs

BASE = {
    key: value
    for key, value in runs.SETTINGS.items()
    if not key.startswith("recipe.stages.long") and key != "model.vocab_size"
}


@pytest.fixture
def overrides(corpus) -> list[str]:
    """The base command: 10 steps of 2,048 tokens."""
    given = BASE | {"data.folder": corpus.folder, "model.vocab_size": 259}
    return [*(f"{key}={value}" for key, value in given.items()), "~recipe.stages.long"]


@pytest.fixture
def base(overrides, tmp_path) -> BaseCommand:
    return BaseCommand(overrides, tmp_path / "study", cluster_of("laptop", 1, 1))


@pytest.fixture
def make(base):
    """Returns a function that makes a study of the kind grid."""

    def make(**keys) -> Study:
        kind = kind_of({"kind": "grid", "base": list(base.overrides)} | keys)
        return Study(kind, base, Costs(base.cluster))

    return make


def write_run(command: RunCommand, loss: float, steps: int | None = None) -> None:
    """Writes the folder of a run up to a step, by default the last one."""
    folder, plan = Path(command.settings.run_dir), command.plan
    last = plan.total_steps if steps is None else steps
    write_text(folder / "config.yaml", OmegaConf.to_yaml(OmegaConf.structured(command.settings)))
    records: list[dict[str, Any]] = []
    for step in range(command.fork + 1, last + 1):
        here = {"step": step, "tokens": plan.tokens_at(step), "time": 100.0 + step}
        records.append({"kind": "train", "step_seconds": 0.5, **here})
        manifest = folder / "checkpoints" / f"step_{step}" / "manifest.json"
        if step == last or step in command.settings.checkpoint.keep_steps:
            write_text(manifest, "{}")
    if steps is None:
        sources = {"code": {"loss": loss, "bits_per_byte": loss / 0.7}}
        records.append({"kind": "validation", "loss": loss, "sources": sources, **here})
        records.append({"kind": "event", "event": "finish", **here})
        write_text(folder / "outcome.json", '{"code": 0, "cause": "finished"}')
    write_text(folder / "metrics.jsonl", "".join(json.dumps(r) + "\n" for r in records))
