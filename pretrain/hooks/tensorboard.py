"""Writes metrics as TensorBoard event files, on rank 0 only.

The files are in `tensorboard/` of the run folder: `tensorboard --logdir runs` shows all runs.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from conf.errors import InputError
from conf.options import read_options
from conf.wandb_run import LoggerConfig
from pretrain.hooks import Hook, Order, TrainerView
from pretrain.hooks.loggers import scalars


@dataclass
class Options:
    """Options of `logger.trackers.tensorboard`.

    flush_seconds: interval in seconds at which pending points are written to the file.
    """

    flush_seconds: int = 30


class TensorBoard(Hook):
    """Logs the numbers of train, validation and eval records as `kind/name`."""

    order = Order.RECORD

    def __init__(self, run_dir: Path, config: LoggerConfig) -> None:
        key = "logger.trackers.tensorboard"
        self.options: Options = read_options(key, Options, config.trackers["tensorboard"] or {})
        if importlib.util.find_spec("tensorboard") is None:
            raise InputError(
                "logger=tensorboard: requires the package tensorboard, which is not installed. "
                'Run pip install -c constraints.txt -e ".[tensorboard]".'
            )
        self.folder = run_dir / "tensorboard"
        self.writer: Any = None

    def on_start(self, trainer: TrainerView) -> None:
        """Opens an event file, and hides earlier points of steps that are trained again."""
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(
            str(self.folder), purge_step=trainer.step + 1, flush_secs=self.options.flush_seconds
        )

    def on_record(self, record: Mapping[str, Any]) -> None:
        """Adds the numbers of a record."""
        if record["kind"] == "event" or self.writer is None:
            return
        try:
            for name, value in scalars(record["kind"], record).items():
                self.writer.add_scalar(name, value, record["step"])
        except Exception as error:  # a full disk must not end the training
            self.writer = None
            print(
                f"warning: TensorBoard failed ({type(error).__name__}: {error}). metrics.jsonl "
                "contains every line.",
                file=sys.stderr,
                flush=True,
            )

    def on_end(self, trainer: TrainerView) -> None:
        """Writes the events that are still in memory, and closes the file."""
        if self.writer is not None:
            self.writer.close()
