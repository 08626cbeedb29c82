"""Runs the parts of a session in a worker process, with deadlines that survive a hung kernel.

One worker runs all parts, so that libraries are imported once. It reports each item of a part as
soon as it is measured. A worker that exceeds a deadline or dies is killed with all processes that
it started, and a new one continues after the item that failed:

    worker 1    a: one, two, three (hangs)
    worker 2    a: four             b: five, six

What was reported before is kept in `figures`, and `publish` is called after every item.
"""

from __future__ import annotations

import json
import math
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
WORKER = "-m benchmarks.gpu.worker"
RESTART_SECONDS = 5.0
"""Time that a part must have left for a new worker to continue it."""
START_SECONDS = 5.0
"""Time that must be left for a part to start."""
DEATH_SECONDS = 10.0
"""Time to wait for a killed worker; one that is stuck in the driver may take longer."""


@dataclass(frozen=True)
class Part:
    """A part of a session.

    Attributes:
        name: Name of the part.
        function: `module:function`, called with a `benchmarks.gpu.worker.Recorder`.
        seconds: Time limit of the part.
        item_seconds: Time limit of each item, within that of the part.
    """

    name: str
    function: str
    seconds: float
    item_seconds: float = math.inf


class Supervisor:
    """Runs parts, and collects their figures.

    Attributes:
        figures: By part: `rows`, the items in order, each with a `name` and either figures or the
            reason as `failed`; `seconds`; and `failed` if the part ended early.
    """

    def __init__(
        self,
        options: dict[str, Any],
        log: Path,
        publish: Callable[[dict[str, Any]], None],
        setup: str | None = None,
        environment: dict[str, str] | None = None,
        worker: Sequence[str] = WORKER.split(),
    ) -> None:
        """Prepares a session; no process is started yet.

        Args:
            options: Values for the functions of the parts, as `Recorder.options`.
            log: File for the output of the workers.
            publish: Called with `figures` after each item and each part.
            setup: `module:function`, called with the options when a worker starts. Its result is
                `Recorder.context`.
            environment: Variables to add to those of the workers.
            worker: Arguments of Python that start a worker, such as those of a program that
                prepares the interpreter and then runs `benchmarks.gpu.worker`.
        """
        self.options, self.log, self.publish, self.setup = options, log, publish, setup
        self.environment = os.environ | (environment or {})
        self.command = [sys.executable, *worker]
        self.figures: dict[str, Any] = {}
        self._worker: _Worker | None = None

    def run(self, parts: Sequence[Part], seconds: float) -> None:
        """Runs the parts in order within `seconds` in all."""
        deadline = time.monotonic() + seconds
        try:
            for part in parts:
                left = deadline - time.monotonic()
                found: dict[str, Any] = {"rows": []}
                self.figures[part.name] = found
                if left < START_SECONDS:
                    found["failed"] = "no time was left"
                else:
                    began = time.monotonic()
                    self._run_part(part, found, min(part.seconds, left))
                    found["seconds"] = time.monotonic() - began
                self.publish(self.figures)
        finally:
            self._end_worker()

    def _run_part(self, part: Part, found: dict[str, Any], seconds: float) -> None:
        deadline = time.monotonic() + seconds
        begun: list[str] = []
        while True:
            if self._worker is None:
                self._worker = _Worker(self)
            job: dict[str, Any] = {
                "function": part.function,
                "seconds": deadline - time.monotonic(),
                "skip": list(begun),
            }
            problem = self._listen(part, found, begun, deadline, job)
            if problem is None:
                return
            self._end_worker()
            if len(begun) > len(found["rows"]):
                found["rows"].append({"name": begun[-1], "failed": problem})
            # Without a new item, the part would fail at the same place again.
            made_progress = len(begun) > len(job["skip"])
            if not made_progress or deadline - time.monotonic() < RESTART_SECONDS:
                found["failed"] = problem
                return
            self.publish(self.figures)

    def _listen(
        self,
        part: Part,
        found: dict[str, Any],
        begun: list[str],
        deadline: float,
        job: dict[str, Any],
    ) -> str | None:
        """Returns None when the part has ended, or the reason why its worker must be replaced."""
        assert self._worker is not None
        until = deadline
        self._worker.send(job)
        while True:
            try:
                message = self._worker.messages.get(timeout=max(0.0, until - time.monotonic()))
            except queue.Empty:
                limit = part.seconds if until == deadline else part.item_seconds
                return f"killed at the limit of {limit:g} s"
            if message is None:
                return f"the process ended with exit code {self._worker.wait()}"
            if "item" in message:
                begun.append(message["item"])
                until = min(deadline, time.monotonic() + part.item_seconds)
            elif "row" in message:
                found["rows"].append(message["row"])
                until = deadline
                self.publish(self.figures)
            else:
                if message["failed"] is not None:
                    found["failed"] = message["failed"]
                return None

    def _end_worker(self) -> None:
        worker, self._worker = self._worker, None
        if worker is not None:
            worker.kill()


class _Worker:
    """A process that runs `benchmarks.gpu.worker`, with its messages in a queue."""

    def __init__(self, session: Supervisor) -> None:
        environment = session.environment
        paths = [str(ROOT), environment.get("PYTHONPATH", "")]
        with session.log.open("ab") as output:
            self.process = subprocess.Popen(
                session.command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=output,
                env=environment | {"PYTHONPATH": os.pathsep.join(filter(None, paths))},
                process_group=0,
                text=True,
            )
        self.messages: queue.Queue[dict[str, Any] | None] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()
        self.send({"setup": session.setup, "options": session.options})

    def send(self, message: dict[str, Any]) -> None:
        """Sends a message. A worker that has died is noticed by its end of messages."""
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):
            self.process.stdin.write(json.dumps(message) + "\n")
            self.process.stdin.flush()

    def wait(self) -> int | None:
        """Returns the exit code of a process that closed its messages."""
        with suppress(subprocess.TimeoutExpired):
            return self.process.wait(DEATH_SECONDS)
        return None

    def kill(self) -> None:
        """Kills the process and all that it started."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.wait()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.messages.put(json.loads(line))
        self.messages.put(None)
