"""The base of loggers whose service may be slow or down: training only appends to a queue."""

from __future__ import annotations

import queue
import sys
import threading
from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar, Protocol

from conf.wandb_run import LoggerConfig
from pretrain.hooks import Hook, Order, TrainerView
from pretrain.hooks.loggers import scalars

QUEUE_LINES = 10_000
FINISH_SECONDS = 30.0


class Service(Protocol):
    """An open run of a service."""

    def log(self, line: dict[str, float]) -> None:
        """Sends the numbers of a record, with its `step`."""

    def finish(self) -> None:
        """Sends what is pending, and closes the run."""


class QueuedLogger(Hook, ABC):
    """Sends the numbers of train, validation and eval records as `kind/name`, from a thread.

    A failure of the service is printed as a warning, and never ends the training.

    Attributes:
        service: Name of the service, for warnings.
    """

    order = Order.RECORD
    service: ClassVar[str]

    def __init__(self, run_dir: Path, config: LoggerConfig) -> None:
        self.run_dir = run_dir
        self.config = config
        self.lines: queue.Queue[dict[str, float] | None] = queue.Queue(QUEUE_LINES)
        self.dropped = 0

    @abstractmethod
    def open(self, name: str, settings: dict[str, Any]) -> Service:
        """Starts or continues the run of the service. Called in the thread.

        Args:
            name: Name of the run.
            settings: The config of the run.
        """

    def on_start(self, trainer: TrainerView) -> None:
        """Starts the thread."""
        run = (trainer.config.name, asdict(trainer.config))
        self.thread = threading.Thread(
            target=self._send, args=run, daemon=True, name=self.service.lower()
        )
        self.thread.start()

    def on_record(self, record: Mapping[str, Any]) -> None:
        """Queues the numbers of a record."""
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

    def _send(self, name: str, settings: dict[str, Any]) -> None:
        try:
            run = self.open(name, settings)
            while (line := self.lines.get()) is not None:
                run.log(line)
            run.finish()
        except Exception as error:  # no failure of the service may end the training
            self._warn(f"failed ({type(error).__name__}: {error})")

    def _warn(self, problem: str) -> None:
        text = f"warning: {self.service} {problem}. metrics.jsonl contains every line."
        print(text, file=sys.stderr, flush=True)
