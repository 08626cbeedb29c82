"""Metrics to Weights & Biases; rank 0 only. Offline where there is no key."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from conf.wandb_run import LoggerConfig, open_run
from pretrain.hooks import Hook

if TYPE_CHECKING:
    from pretrain.trainer import Trainer


class WandbLogger(Hook):
    """One wandb run for the whole run folder: its id lies there and is used after a restart."""

    def __init__(self, run_dir: Path, config: LoggerConfig) -> None:
        self.run_dir = run_dir
        self.config = config

    def on_start(self, trainer: Trainer) -> None:
        """Starts or continues the run."""
        id_file = self.run_dir / "wandb_id"
        if not id_file.exists():
            id_file.write_text(secrets.token_hex(8))
        self.run = open_run(
            self.config,
            trainer.config.name,
            self.run_dir,
            asdict(trainer.config),
            id_file.read_text().strip(),
        )
        # Steps are an axis of our own: wandb's must only grow, and a resumed run repeats some.
        self.run.define_metric("step")
        self.run.define_metric("*", step_metric="step")

    def on_record(self, record: Mapping[str, Any]) -> None:
        """Logs the numbers of a train or validation line as `kind/name`."""
        if record["kind"] != "event":
            self.run.log({"step": record["step"], **_numbers(record["kind"], record)})

    def on_end(self, trainer: Trainer) -> None:
        """Flushes."""
        self.run.finish()


def _numbers(prefix: str, record: Mapping[str, Any]) -> dict[str, float]:
    flat: dict[str, float] = {}
    for key, value in record.items():
        if isinstance(value, Mapping):
            flat |= _numbers(f"{prefix}/{key}", value)
        elif isinstance(value, int | float) and key not in ("step", "time"):
            flat[f"{prefix}/{key}"] = value
    return flat
