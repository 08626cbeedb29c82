"""Stops a run between two steps: on a signal to any rank, at a time limit, or on a stop file.

After each step, every rank submits its request, and all ranks read the requests one step later. So
all of them stop after the same step (I8), after which the checkpoint hook saves.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path
from types import FrameType

from conf.errors import InputError
from pretrain.health.config import HealthConfig
from pretrain.health.late_gather import LateGather
from pretrain.hooks import Hook, Order, TrainerView
from pretrain.processes import Processes

STOP_FILE = "STOP"
LOOK_SECONDS = 1.0
"""Interval between checks for the stop file, which may be on a network file system."""
SAME_REQUEST_SECONDS = 1.0
"""Time after the first signal within which further signals count as the same request.

Ctrl-C reaches a rank twice, from the terminal and from torchrun."""
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP)
TIME_LIMIT, FILE = 1001, 1002  # outside the range of signal numbers
STARTED = time.monotonic()


def check_stop_file(run_dir: Path) -> None:
    """Raises InputError if a stop file exists, so that requeued jobs stop too."""
    path = run_dir / STOP_FILE
    if path.exists():
        raise InputError(f"{path} exists, which stops the run. Remove the file to start the run.")


class StopRequests(Hook):
    """Stops the run on request, on all ranks.

    The first request stops the run after one or two more steps. A signal more than
    SAME_REQUEST_SECONDS after the first signal ends this process at once, with exit code 128 plus
    the signal's number.
    """

    order = Order.CONTROL

    def __init__(self, run_dir: Path, config: HealthConfig, processes: Processes) -> None:
        self.path = run_dir / STOP_FILE
        minutes = config.time_limit_minutes
        self.deadline = None if minutes is None else STARTED + 60 * minutes
        self.is_main = processes.is_main
        self.gather = LateGather(processes)
        self.asked = 0
        self.looked_at = self.signalled_at = 0.0
        self.before: dict[signal.Signals, object] = {}

    def on_start(self, trainer: TrainerView) -> None:
        """Installs the signal handlers, except for SIGHUP if `nohup` ignores it."""
        if threading.current_thread() is not threading.main_thread():
            return
        for number in SIGNALS:
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                self.before[number] = signal.signal(number, self._handle)

    def after_step(self, trainer: TrainerView) -> None:
        """Submits this rank's request, and stops the run if any rank submitted one a step ago."""
        if self.is_main:
            self._look()
        answers = self.gather.exchange([self.asked])
        for rank, (asked,) in enumerate(answers):
            if asked:
                trainer.stopping = trainer.stopping or self._cause(int(asked), rank)
                trainer.must_save = True

    def on_end(self, trainer: TrainerView) -> None:
        """Restores the signal handlers."""
        self.gather.collect()
        for number, handler in self.before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _look(self) -> None:
        now = time.monotonic()
        if self.deadline is not None and now > self.deadline:
            self.asked = self.asked or TIME_LIMIT
        if now - self.looked_at > LOOK_SECONDS:
            self.looked_at = now
            if self.path.exists():
                self.asked = self.asked or FILE

    def _handle(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.signalled_at and now - self.signalled_at > SAME_REQUEST_SECONDS:
            os._exit(128 + number)
        self.signalled_at = self.signalled_at or now
        self.asked = number

    def _cause(self, asked: int, rank: int) -> str:
        if asked == TIME_LIMIT:
            return "time limit"
        if asked == FILE:
            return f"stop file {self.path}"
        return f"{signal.Signals(asked).name} on rank {rank}"
