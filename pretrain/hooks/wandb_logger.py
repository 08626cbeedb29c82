"""Sends metrics to Weights & Biases, on rank 0 only.

With `logger.wandb=auto` and no API key, the run is logged offline.
"""

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
from pretrain.hooks import Hook, Order, TrainerView
from pretrain.hooks.loggers import scalars

QUEUE_LINES = 10_000
FINISH_SECONDS = 30.0


class WandbLogger(Hook):
    """Logs a run as one wandb run, whose id is stored in the run folder for restarts.

    A thread sends the lines, since the server may be slow or down. Training only appends to a
    queue.
    """

    order = Order.RECORD

    def __init__(self, run_dir: Path, config: LoggerConfig) -> None:
        self.run_dir = run_dir
        self.config = config
        check_key(config)
        self.lines: queue.Queue[dict[str, float] | None] = queue.Queue(QUEUE_LINES)
        self.dropped = 0

    def on_start(self, trainer: TrainerView) -> None:
        """Starts or continues the wandb run in a thread."""
        id_file = self.run_dir / "wandb_id"
        if not id_file.exists():
            id_file.write_text(secrets.token_hex(8))
        run = (trainer.config.name, self.run_dir, asdict(trainer.config))
        self.thread = threading.Thread(
            target=self._send, args=(*run, id_file.read_text().strip()), daemon=True, name="wandb"
        )
        self.thread.start()

    def on_record(self, record: Mapping[str, Any]) -> None:
        """Queues the numbers of a train, validation or eval record as `kind/name`."""
        if record["kind"] == "event":
            return
        try:
            self.lines.put_nowait({"step": record["step"], **scalars(record["kind"], record)})
        except queue.Full:
            self.dropped += 1

    def on_end(self, trainer: TrainerView) -> None:
        """Waits up to FINISH_SECONDS for the thread to send the rest of the queue."""
        with suppress(queue.Full):
            self.lines.put_nowait(None)
        self.thread.join(FINISH_SECONDS)
        if self.thread.is_alive():
            self._warn(f"did not accept all lines within {FINISH_SECONDS:.0f} s")
        elif self.dropped:
            self._warn(f"was too slow, so {self.dropped} lines were not sent")

    def _send(self, name: str, folder: Path, settings: dict[str, Any], run_id: str) -> None:
        try:
            run = open_run(self.config, name, folder, settings, run_id)
            # wandb's own step must never decrease, but a resumed run repeats some steps.
            run.define_metric("step")
            run.define_metric("*", step_metric="step")
            while (line := self.lines.get()) is not None:
                run.log(line)
            run.finish()
        except Exception as error:  # no failure of wandb may end the training
            self._warn(f"failed ({type(error).__name__}: {error})")

    def _warn(self, problem: str) -> None:
        text = f"warning: wandb {problem}. metrics.jsonl contains every line."
        print(text, file=sys.stderr, flush=True)
