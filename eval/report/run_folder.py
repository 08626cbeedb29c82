"""Reads the folder of a training run."""

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
    """The content of a run folder.

    config: the composed config.
    env: commit, packages, hardware and fingerprints.
    records: lines of metrics.jsonl.
    """

    path: Path
    config: dict[str, Any]
    env: dict[str, Any]
    records: list[Record]

    def of_kind(self, kind: str) -> list[Record]:
        """Returns the records of a kind: train, validation, eval or event."""
        return [record for record in self.records if record["kind"] == kind]

    @cached_property
    def train(self) -> list[Record]:
        """The training records, one per step."""
        return self.of_kind("train")

    @cached_property
    def validation(self) -> list[Record]:
        """The validation records."""
        return self.of_kind("validation")

    def events(self, *names: str) -> list[Record]:
        """Returns the events with one of these names."""
        return [record for record in self.of_kind("event") if record["event"] in names]

    @property
    def is_finished(self) -> bool:
        """True if the run has completed the last step of its recipe."""
        return bool(self.events("finish"))

    @cached_property
    def model(self) -> ModelConfig:
        """The config of the network."""
        merged = OmegaConf.merge(OmegaConf.structured(ModelConfig), self.config["model"])
        model = OmegaConf.to_object(merged)
        assert isinstance(model, ModelConfig)
        return model

    @property
    def origin(self) -> str | None:
        """Name of the model that the run was continued from, or None."""
        init_from = self.config.get("init_from")
        kept = self.path / "init_from" / "origin.json"
        if kept.is_file():
            return json.loads(kept.read_text())["name"]
        return Path(init_from).name if init_from else None

    @property
    def checkpoints(self) -> list[str]:
        """Names of the checkpoints on disk, oldest first."""
        names = [p.name for p in self.path.glob("checkpoints/step_*") if p.suffix != ".tmp"]
        return sorted(names, key=lambda name: int(name.removeprefix("step_")))


def read_run(path: Path, key: str = "run") -> RunFolder:
    """Reads a run folder.

    key: the setting that names the folder, for error messages.

    Raises:
        InputError: the folder is not a run folder, or has no step yet.
    """
    for name in ("config.yaml", "env.json", "metrics.jsonl"):
        if not (path / name).is_file():
            raise InputError(
                f"{key}={path}: {name} is missing. Give a run folder written by python -m pretrain."
            )
    config = OmegaConf.to_container(OmegaConf.load(path / "config.yaml"))
    assert isinstance(config, dict)
    env = json.loads((path / "env.json").read_text())
    run = RunFolder(
        path, {str(key): value for key, value in config.items()}, env, read_metrics(path)
    )
    if not run.train:
        raise InputError(f"{key}={path}: the run has no training step yet. Wait for the first one.")
    return run


def read_metrics(folder: Path) -> list[Record]:
    """Returns the records of metrics.jsonl, without an incomplete last line."""
    path = folder / "metrics.jsonl"
    text = path.read_text(encoding="utf-8")
    complete = text[: text.rfind("\n") + 1]
    if complete == text:
        return read_json_lines(path, "metrics")
    return [json.loads(line) for line in complete.splitlines() if line]
