"""A save, from the border of a step to the commit; all ranks.

Ranks talk to each other at the border alone, where they stand together anyway. Afterwards a thread
of each waits for its writer and puts its vote into the job's store, where rank 0 counts: whoever
hangs or fails is named, and no collective is left half done.
"""

from __future__ import annotations

import base64
import contextlib
import pickle
import queue
import threading
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.distributed_c10d import _get_default_store

from pretrain.checkpoints import commit, staging
from pretrain.checkpoints.retention import Retention
from pretrain.checkpoints.writer_process import Aside, AsideError
from pretrain.processes import Processes

POLL_SECONDS = 0.05
GRACE_SECONDS = 10.0
CPU_SHARE = 0.05
"""Of a core's time, for a writer where the training computes on the same cores: a step's threads
wait for each other, so that each core it takes holds up all of them."""
PACED_PART = 10
"""It does so for a tenth of the time that it may take."""


Vote = tuple[Any, str | None]
"""What a rank wrote (the manifest's entries, DCP's results), or why not."""


@dataclass
class Save:
    """A save under way. name: the same on all ranks, and of no other save."""

    step: int
    name: str
    about: dict[str, Any]
    started: float
    staged: staging.Staged | None = None
    copied: torch.cuda.Event | None = None
    problem: str | None = None
    held_seconds: float = 0.0


@dataclass(frozen=True)
class Outcome:
    """How a save ended. problem: None where it is committed.

    held_seconds: that the training waited; seconds: until it was durable; bytes: of this rank.
    """

    step: int
    problem: str | None
    held_seconds: float
    seconds: float
    bytes: int
    removed: list[str]


class Saver:
    """Saves one at a time.

    seconds: that each part of a save may take before it is killed; patience: that a save waits for
        the one before it, in seconds, before it is left out.
    held_seconds: that the last save held the training up on this rank.
    """

    def __init__(
        self,
        folder: Path,
        processes: Processes,
        aside: Aside,
        keep: Retention,
        seconds: float,
        patience: float,
    ) -> None:
        self.folder, self.processes, self.aside, self.keep = folder, processes, aside, keep
        self.seconds, self.patience = seconds, patience
        self.outcomes: queue.Queue[Outcome] = queue.Queue()
        self.held_seconds = 0.0
        self._planner = staging.Planner()
        self._store = dist.PrefixStore("checkpoints", _get_default_store())
        self._thread: threading.Thread | None = None
        self._last: Outcome | None = None
        self._leaving = False

    def save(
        self, step: int, model: nn.Module, optimizer: torch.optim.Optimizer, about: dict[str, Any]
    ) -> str | None:
        """Begins a save, or says why not; every rank calls it, and all get the same answer.

        about: what else the manifest states, JSON.
        """
        started = time.monotonic()
        self.wait(self.patience)
        answers: list[Any] = [None] * self.processes.world_size
        dist.all_gather_object(answers, (self.busy, uuid.uuid4().hex[:8]))
        late = [str(rank) for rank, (busy, _) in enumerate(answers) if busy]
        if late:
            return f"the save before it is still being written by rank {', '.join(late)}"
        save = Save(step, answers[0][1], {"step": step, **about}, started)
        planner, plan = self._planner.plan(staging.state_of(model, optimizer))
        try:
            save.staged, sources = staging.places(planner, plan)
            memory = self.aside.memory(save.staged.bytes, self.processes.device.type == "cuda")
            memory[staging.HURRY] = 0
            staging.copy(save.staged, sources, memory)
            if self.processes.device.type == "cuda":
                save.copied = torch.cuda.Event()
                save.copied.record()
        except (OSError, RuntimeError, MemoryError) as error:
            save.problem = f"it cannot be copied to memory ({error})"
        save.held_seconds = self.held_seconds = time.monotonic() - started
        self._thread = threading.Thread(
            target=self._finish_or_leave, args=(save,), daemon=True, name="checkpoint"
        )
        self._thread.start()
        return None

    @property
    def busy(self) -> bool:
        """Whether this rank has a save under way."""
        return self._thread is not None and self._thread.is_alive()

    def wait(self, seconds: float | None = None) -> None:
        """Waits for this rank's part of the save under way, which ends in bounded time."""
        if self._thread is not None:
            self.aside.memory(1)[staging.HURRY] = 1
            self._thread.join(seconds)

    def leave(self) -> None:
        """Gives a save under way a last few seconds, then lets it go."""
        self.wait(GRACE_SECONDS)
        self._leaving = True

    def agreed_outcome(self) -> str | None:
        """Waits for the save under way; what is wrong with it, the same on every rank."""
        self.wait()
        answer = [self._last.problem if self._last else None]
        dist.broadcast_object_list(answer, src=0)
        return answer[0]

    def _finish_or_leave(self, save: Save) -> None:
        """`_finish`; where the job's store is gone nobody can commit, as when torchrun was killed,
        which holds it."""
        try:
            self._finish(save)
        except dist.DistError:
            problem = "the job's store is gone."
            self._last = Outcome(save.step, problem, save.held_seconds, 0.0, 0, [])

    def _finish(self, save: Save) -> None:
        """What follows the border, in a thread: this rank's files and vote; rank 0's commit."""
        temporary = self.folder / f"step_{save.step}.tmp-{save.name}"
        vote: Vote = (None, save.problem)
        if save.problem is None:
            try:
                if save.copied is not None:
                    save.copied.synchronize()
                share = CPU_SHARE if self.processes.device.type == "cpu" else 1.0
                wrote = self.aside.call(
                    *(commit.write_shards, temporary, save.step, save.staged, share),
                    self.seconds / PACED_PART,
                    seconds=self.seconds,
                )
                vote = (wrote, None)
            except AsideError as error:
                vote = (None, f"{error}")
        if self._leaving:
            return
        key = f"{save.name}/{self.processes.rank}"
        self._store.set(key, base64.b64encode(pickle.dumps(vote)).decode())
        if not self.processes.is_main:
            return
        removed: list[str] = []
        problem: str | None = None
        try:
            votes = self._count(save)
            final = self.folder / f"step_{save.step}"
            removed = self.aside.call(
                commit.commit,
                *(temporary, final, self._planner.metadata, votes, save.about, self.keep),
                seconds=self.seconds,
            )
        except AsideError as error:
            problem = f"{error}"
            self._discard(temporary)
        seconds = time.monotonic() - save.started
        size = save.staged.bytes if save.staged else 0
        self._last = Outcome(save.step, problem, save.held_seconds, seconds, size, removed)
        self.outcomes.put(self._last)

    def _count(self, save: Save) -> list[Any]:
        """What all ranks wrote. Raises AsideError naming those that failed or did not vote."""
        keys = [f"{save.name}/{rank}" for rank in range(self.processes.world_size)]
        ends = save.started + self.seconds + GRACE_SECONDS
        while not self._store.check(keys):
            if self._leaving:
                raise AsideError("the run ended before.")
            if time.monotonic() > ends:
                silent = [rank for rank, key in enumerate(keys) if not self._store.check([key])]
                raise AsideError(f"rank {', '.join(map(str, silent))} did not say that it wrote.")
            time.sleep(POLL_SECONDS)
        votes: list[Vote] = [pickle.loads(base64.b64decode(self._store.get(key))) for key in keys]
        for key in keys:
            self._store.delete_key(key)
        for rank, (_, problem) in enumerate(votes):
            if problem is not None:
                raise AsideError(f"rank {rank}: {problem}")
        return [wrote for wrote, _ in votes]

    def _discard(self, temporary: Path) -> None:
        with contextlib.suppress(AsideError):  # the next start sweeps it
            self.aside.call(commit.discard, temporary, seconds=self.seconds)
