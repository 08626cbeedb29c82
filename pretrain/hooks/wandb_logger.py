"""Metrics to Weights & Biases; rank 0 only. Offline where there is no key."""

from __future__ import annotations

import queue
import secrets
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from conf.wandb_run import LoggerConfig, check_key, open_run
from pretrain.hooks import Hook, TrainerView

QUEUE_LINES = 10_000
FINISH_SECONDS = 30.0


class WandbLogger(Hook):
    """One wandb run for the whole run folder: its id lies there and is used after a restart.

    A thread talks to wandb, whose server may be slow or away: a step costs an entry in a queue.
    """

    def __init__(self, run_dir: Path, config: LoggerConfig) -> None:
        self.run_dir = run_dir
        self.config = config
        check_key(config)
        self.lines: queue.Queue[dict[str, float] | None] = queue.Queue(QUEUE_LINES)
        self.dropped = 0

    def on_start(self, trainer: TrainerView) -> None:
        """Starts or continues the run, beside the training."""
        id_file = self.run_dir / "wandb_id"
        if not id_file.exists():
            id_file.write_text(secrets.token_hex(8))
        about = (trainer.config.name, self.run_dir, asdict(trainer.config))
        self.thread = threading.Thread(
            target=self._talk, args=(*about, id_file.read_text().strip()), daemon=True, name="wandb"
        )
        self.thread.start()

    def on_record(self, record: Mapping[str, Any]) -> None:
        """Logs the numbers of a train or validation line as `kind/name`."""
        if record["kind"] == "event":
            return
        try:
            self.lines.put_nowait({"step": record["step"], **_numbers(record["kind"], record)})
        except queue.Full:
            self.dropped += 1

    def on_end(self, trainer: TrainerView) -> None:
        """Flushes, as long as that does not take too long."""
        with suppress(queue.Full):
            self.lines.put_nowait(None)
        self.thread.join(FINISH_SECONDS)
        if self.thread.is_alive():
            self._warn(f"did not take all lines within {FINISH_SECONDS:.0f} s")
        elif self.dropped:
            self._warn(f"was too slow for {self.dropped} lines")

    def _talk(self, name: str, folder: Path, settings: dict[str, Any], run_id: str) -> None:
        try:
            run = open_run(self.config, name, folder, settings, run_id)
            # Steps are an axis of our own: wandb's must only grow, and a resumed run repeats some.
            run.define_metric("step")
            run.define_metric("*", step_metric="step")
            while (line := self.lines.get()) is not None:
                run.log(line)
            run.finish()
        except Exception as error:  # whatever it is, the training does not end for it
            self._warn(f"failed ({type(error).__name__}: {error})")

    def _warn(self, what: str) -> None:
        print(f"warning: wandb {what}; metrics.jsonl has every line.", file=sys.stderr, flush=True)


def _numbers(prefix: str, record: Mapping[str, Any]) -> dict[str, float]:
    flat: dict[str, float] = {}
    for key, value in record.items():
        if isinstance(value, Mapping):
            flat |= _numbers(f"{prefix}/{key}", value)
        elif isinstance(value, int | float) and key not in ("step", "time"):
            flat[f"{prefix}/{key}"] = value
    return flat
