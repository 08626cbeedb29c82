"""Ends a run that hangs, in bounded time, and names the rank that the others wait for.

In each rank, a thread measures how long the main thread has been busy with its current activity.
Past the limit, every rank writes its Python stacks, its step and its last collectives to
`logs/hang/`, then the whole record of its collectives (`flight_recorder`), and waits a few seconds
for the files of the others. The lowest rank with a file then
names the late rank: the one that wrote no file (it is stopped or gone) or started fewer collectives
than the others. Then all ranks exit.

If a rank fails, its outcome is in the run folder. The other ranks read it there and exit too,
instead of waiting for that rank until the limit.

If the interpreter itself is stuck, no Python thread runs. A timer in C, which every step resets,
then writes the stacks and ends the process a little later.
"""

from __future__ import annotations

import faulthandler
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch.distributed import distributed_c10d

from conf.errors import EXIT_HANG
from pretrain.health import flight_recorder
from pretrain.health.config import HealthConfig
from pretrain.health.outcome import read_outcome, write_outcome
from pretrain.hooks import Hook, Order, TrainerView
from pretrain.processes import Processes

GRACE_SECONDS = 5.0
"""Time to wait for the files of the other ranks."""
LOOK_SECONDS = 5.0
"""Interval between checks whether another rank has failed."""


class Watchdog(Hook):
    """Limits the time of steps and of the work between them, on all ranks.

    The watchdog is the first hook, so that the work of the other hooks counts as work between
    steps. The first step of a process or of a stage may compile, so it has the time limit of the
    work between steps.
    """

    order = Order.TIME

    def __init__(self, run_dir: Path, config: HealthConfig, processes: Processes) -> None:
        self.run_dir = run_dir
        self.folder = run_dir / "logs" / "hang"
        self.rank, self.world_size = processes.rank, processes.world_size
        self.device = processes.device
        self.step_seconds, self.pause_seconds = config.step_seconds, config.pause_seconds
        self.doing = "the start"
        self.ends = float("inf")

    def on_start(self, trainer: TrainerView) -> None:
        """Starts the thread, and sets the timeout of all process groups.

        The timeout of the groups is the fallback if the watchdog thread dies.
        """
        if not self.step_seconds:
            return
        self.first_step = trainer.step
        last = max(self.step_seconds, self.pause_seconds) + 4 * GRACE_SECONDS
        set_timeout = timeout_setter()
        if set_timeout is not None:
            for group in groups():
                set_timeout(timedelta(seconds=last), group)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.path(self.rank).unlink(missing_ok=True)
        self.stacks = (self.folder / f"rank_{self.rank}.stacks").open("w")
        self._begin("the work before the first step", self.pause_seconds)
        threading.Thread(target=self._watch, daemon=True, name="watchdog").start()

    def before_step(self, trainer: TrainerView) -> None:
        """Starts the time limit of a step."""
        fresh = trainer.step in (self.first_step, trainer.plan.at(trainer.step).first_step)
        limit = self.pause_seconds if fresh else self.step_seconds
        self._begin(f"step {trainer.step + 1}", limit)

    def after_step(self, trainer: TrainerView) -> None:
        """Starts the time limit of the other hooks, such as validation, tasks and checkpoints."""
        self._begin(f"the work after step {trainer.step}", self.pause_seconds)

    def on_end(self, trainer: TrainerView) -> None:
        """Disarms the watchdog."""
        self.ends = float("inf")
        faulthandler.cancel_dump_traceback_later()

    def path(self, rank: int) -> Path:
        """Returns the file that a rank writes when the run hangs."""
        return self.folder / f"rank_{rank}.json"

    def _begin(self, what: str, seconds: float) -> None:
        if self.step_seconds:
            self.doing, self.ends = what, time.monotonic() + seconds
            last = seconds + 2 * GRACE_SECONDS
            faulthandler.dump_traceback_later(last, exit=True, file=self.stacks)

    def _watch(self) -> None:
        looked_at = time.monotonic()
        while True:
            now = time.monotonic()
            left = self.ends - now
            if left <= 0:
                break
            if now - looked_at > LOOK_SECONDS:
                looked_at = now
                self._follow()
            time.sleep(min(left, 0.5))
        self._write()
        time.sleep(GRACE_SECONDS)
        answers = {rank: self._read(rank) for rank in range(self.world_size)}
        present = {rank: about for rank, about in answers.items() if about}
        if self.rank == min(present, default=self.rank):
            cause = (
                f"{self.doing} hangs: {who_is_late(answers)}. The stacks of all ranks are in "
                f"{self.folder}."
            )
            print(f"error: {cause}", file=sys.stderr, flush=True)
            write_outcome(self.run_dir, EXIT_HANG, cause)
        else:
            time.sleep(1.0)  # once one rank exits, torchrun ends the others
        os._exit(EXIT_HANG)

    def _follow(self) -> None:
        """Exits if another rank has failed.

        On a GPU this rank may wait in a kernel, which neither errors nor signals can interrupt.
        """
        ended = read_outcome(self.run_dir)
        if ended is None or not ended["code"]:
            return
        time.sleep(GRACE_SECONDS)  # lets this rank report its own error first
        if self.ends < float("inf"):
            os._exit(ended["code"])

    def _write(self) -> None:
        faulthandler.dump_traceback(file=self.stacks)
        about = {"doing": self.doing, "collectives": collectives()}
        self._write_json(about)
        # NCCL's recorder asks the driver for the state of each collective, and may get no answer.
        threading.Thread(target=self._write_collectives, args=(about,), daemon=True).start()

    def _write_collectives(self, about: dict[str, Any]) -> None:
        self._write_json(about | {"last": flight_recorder.last_collectives(self.device)})
        flight_recorder.dump(self.rank, self.device)

    def _write_json(self, about: dict[str, Any]) -> None:
        temporary = self.path(self.rank).with_suffix(".tmp")
        temporary.write_text(json.dumps(about, indent=1))
        temporary.replace(self.path(self.rank))

    def _read(self, rank: int) -> dict[str, Any] | None:
        try:
            return json.loads(self.path(rank).read_text())
        except (OSError, ValueError):
            return None


def who_is_late(answers: Mapping[int, Mapping[str, Any] | None]) -> str:
    """Returns a clause that names the ranks that the others wait for.

    answers: per rank, the content of its file, or None if it wrote none.
    """
    silent = [rank for rank, about in answers.items() if not about]
    if silent:
        return f"{_ranks(silent)} did not respond"
    counts = {rank: about["collectives"] for rank, about in answers.items() if about}
    late = [rank for rank, count in counts.items() if count == min(counts.values())]
    if len(late) == len(counts):
        return "no rank is behind the others"
    doing = answers[late[0]]["doing"]  # type: ignore[index]
    return f"{_ranks(late)} is behind the others, in {doing}"


def timeout_setter() -> Callable[[timedelta, Any], None] | None:
    """Returns torch's function that sets the timeout of a group; it is public since torch 2.14.

    Returns None if this torch has neither name.
    """
    public = getattr(dist, "set_timeout", None)
    return public or getattr(distributed_c10d, "_set_pg_timeout", None)


def groups() -> list[Any]:
    """Returns all process groups; empty if this version of torch does not list them."""
    return list(getattr(getattr(distributed_c10d, "_world", None), "pg_map", ()))


def collectives() -> int:
    """Returns the number of collectives that this rank has started, in all groups."""
    total = 0
    for group in groups():
        try:
            total += getattr(group, "_get_sequence_number_for_group")()  # noqa: B009
        except RuntimeError:  # a backend that does not count
            continue
    return total


def _ranks(ranks: list[int]) -> str:
    return f"rank{'s' * (len(ranks) > 1)} {', '.join(map(str, ranks))}"
