"""Sends metrics to Weights & Biases, on rank 0 only.

With `logger.wandb=auto` and no API key, the run is logged offline.
"""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Any, ClassVar

from conf.wandb_run import LoggerConfig, check_key, open_run
from pretrain.hooks.queued_logger import QueuedLogger, Service


class WandbLogger(QueuedLogger):
    """Logs a run as one wandb run, whose id is stored in the run folder for restarts."""

    service: ClassVar[str] = "wandb"

    def __init__(self, run_dir: Path, config: LoggerConfig) -> None:
        super().__init__(run_dir, config)
        check_key(config)

    def open(self, name: str, settings: dict[str, Any]) -> Service:
        """Starts or continues the wandb run."""
        id_file = self.run_dir / "wandb_id"
        if not id_file.exists():
            id_file.write_text(secrets.token_hex(8))
        run = open_run(self.config, name, self.run_dir, settings, id_file.read_text().strip())
        # wandb's own step must never decrease, but a resumed run repeats some steps.
        run.define_metric("step")
        run.define_metric("*", step_metric="step")
        return run
