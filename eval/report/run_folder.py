"""Reads what a training run left in its folder."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from conf.errors import InputError
from eval.files import read_json_lines
from model.config import ModelConfig

Record = dict[str, Any]


@dataclass(frozen=True)
class RunFolder:
    """config: as composed; env: commit, packages, hardware, fingerprints; records: metrics."""

    path: Path
    config: dict[str, Any]
    env: dict[str, Any]
    records: list[Record]

    def of_kind(self, kind: str) -> list[Record]:
        """Lines of metrics.jsonl: train, validation or event."""
        return [record for record in self.records if record["kind"] == kind]

    @cached_property
    def train(self) -> list[Record]:
        """A line a step."""
        return self.of_kind("train")

    @cached_property
    def validation(self) -> list[Record]:
        """A line a validation."""
        return self.of_kind("validation")

    def events(self, *names: str) -> list[Record]:
        """Events of these kinds."""
        return [record for record in self.of_kind("event") if record["event"] in names]

    @property
    def is_finished(self) -> bool:
        """Whether the last step of the plan was done."""
        return bool(self.events("finish"))

    @cached_property
    def model(self) -> ModelConfig:
        """The shape of the network."""
        merged = OmegaConf.merge(OmegaConf.structured(ModelConfig), self.config["model"])
        model = OmegaConf.to_object(merged)
        assert isinstance(model, ModelConfig)
        return model

    @property
    def checkpoints(self) -> list[str]:
        """Names of those on disk, oldest first."""
        found = [p.name for p in self.path.glob("checkpoints/step_*") if p.suffix != ".tmp"]
        return sorted(found, key=lambda name: int(name.removeprefix("step_")))


def read_run(path: Path, key: str = "run") -> RunFolder:
    """Reads the folder that setting `key` names.

    Raises:
        InputError: it is missing, or no run has logged a step in it.
    """
    for name in ("config.yaml", "env.json", "metrics.jsonl"):
        if not (path / name).is_file():
            raise InputError(
                f"{key}={path} has no {name}: expected the folder of a run of python -m pretrain."
            )
    config = OmegaConf.to_container(OmegaConf.load(path / "config.yaml"))
    assert isinstance(config, dict)
    env = json.loads((path / "env.json").read_text())
    run = RunFolder(
        path, {str(key): value for key, value in config.items()}, env, read_metrics(path)
    )
    if not run.train:
        raise InputError(f"{path / 'metrics.jsonl'} has no train line yet: wait for a step.")
    return run


def read_metrics(folder: Path) -> list[Record]:
    """Lines of metrics.jsonl; a last line that is being written is left out."""
    path = folder / "metrics.jsonl"
    text = path.read_text(encoding="utf-8")
    whole = text[: text.rfind("\n") + 1]
    if whole == text:
        return read_json_lines(path, "metrics")
    return [json.loads(line) for line in whole.splitlines() if line]
