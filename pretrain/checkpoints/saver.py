"""Runs a save from the step boundary to the commit, on all ranks.

Ranks communicate only at the step boundary, where they are synchronized anyway. Afterwards, a
thread of each rank waits for its writer process, and puts the rank's vote into the job's store,
where rank 0 counts the votes. So a rank that hangs or fails is named, and no collective is left
unfinished.

The metadata in a checkpoint's manifest (position in the data, model, layout and the states of
hooks) comes from `Trainer.checkpoint_metadata`; a hook adds to it with `Hook.state_dict`. `save`
receives it as `about`.
"""

from __future__ import annotations

import base64
import contextlib
import pickle
import queue
import threading
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.distributed_c10d import _get_default_store

from pretrain.checkpoints import commit, staging
from pretrain.checkpoints.retention import Retention
from pretrain.checkpoints.writer_process import WriterError, WriterProcess
from pretrain.processes import Processes

POLL_SECONDS = 0.05
GRACE_SECONDS = 10.0

Vote = tuple[Any, str | None]
"""Result of a rank (manifest entries and DCP's results) and None, or None and why it failed."""


@dataclass
class Save:
    """A save in progress.

    name: a unique name, the same on all ranks.
    sources: the tensors that are copied, until `copied`.
    """

    step: int
    name: str
    about: dict[str, Any]
    started: float
    staged: staging.Staged | None = None
    sources: list[Tensor | None] = field(default_factory=list)
    copied: torch.cuda.Event | None = None
    problem: str | None = None
    stall_seconds: float = 0.0


@dataclass(frozen=True)
class Outcome:
    """The result of a save.

    problem: why it failed; None if it was committed.
    stall_seconds: how long it blocked training.
    seconds: time from its start until it was durable.
    bytes: size of this rank's part.
    removed: names of the checkpoints that were deleted.
    """

    step: int
    problem: str | None
    stall_seconds: float
    seconds: float
    bytes: int
    removed: list[str]


class Saver:
    """Saves one checkpoint at a time.

    timeout_seconds: time after which an unfinished part of a save is killed.
    wait_timeout_seconds: how long a save waits for the previous save before it is skipped.
    stall_seconds: how long the last save blocked training on this rank.
    """

    def __init__(
        self,
        folder: Path,
        processes: Processes,
        writer: WriterProcess,
        keep: Retention,
        timeout_seconds: float,
        wait_timeout_seconds: float,
    ) -> None:
        self.folder, self.processes, self.writer, self.keep = folder, processes, writer, keep
        self.timeout_seconds, self.wait_timeout_seconds = timeout_seconds, wait_timeout_seconds
        self.outcomes: queue.Queue[Outcome] = queue.Queue()
        self.stall_seconds = 0.0
        self._planner = staging.Planner()
        self._copier = staging.Copier(processes.device)
        self._store = dist.PrefixStore("checkpoints", _get_default_store())
        self._thread: threading.Thread | None = None
        self._last: Outcome | None = None
        self._abandoned = False

    def prepare(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, others: Mapping[str, Any]
    ) -> None:
        """Allocates and pins the memory of all saves, so that the first save is as fast as others.

        On a CPU nothing is pinned, and the first save allocates. Every rank must call this method,
        once the optimizer has its states.
        """
        if self.processes.device.type != "cuda":
            return
        planner, plan = self._planner.plan(staging.state_of(model, optimizer, others))
        with contextlib.suppress(OSError, MemoryError):  # the first save tries again, and reports
            self.writer.memory(staging.allocate(planner, plan)[0].bytes, pinned=True)

    def delay_update(self) -> None:
        """Makes the device finish the copy of a save before the update of the weights."""
        self._copier.delay_update()

    def save(
        self,
        step: int,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        about: dict[str, Any],
        others: Mapping[str, Any] = staging.NO_OTHERS,
    ) -> str | None:
        """Starts a save, or returns why it is skipped.

        Every rank must call it, and all ranks get the same result.

        about: metadata to store in the manifest, as JSON values.
        others: tensors to store in addition to those of the model and the optimizer.
        """
        started = time.monotonic()
        self.wait(self.wait_timeout_seconds)
        answers: list[Any] = [None] * self.processes.world_size
        dist.all_gather_object(answers, (self.busy, uuid.uuid4().hex[:8]))
        late = [str(rank) for rank, (busy, _) in enumerate(answers) if busy]
        if late:
            return f"the previous checkpoint is still being written by rank {', '.join(late)}."
        save = Save(step, answers[0][1], {"step": step, **about}, started)
        planner, plan = self._planner.plan(staging.state_of(model, optimizer, others))
        try:
            save.staged, save.sources = staging.allocate(planner, plan)
            memory = self.writer.memory(save.staged.bytes, self.processes.device.type == "cuda")
            save.copied = self._copier.copy(save.staged, save.sources, memory)
        except (OSError, RuntimeError, MemoryError) as error:
            save.problem = f"its tensors cannot be copied to host memory ({error})."
        save.stall_seconds = self.stall_seconds = time.monotonic() - started
        self._thread = threading.Thread(
            target=self._finish_or_abandon, args=(save,), daemon=True, name="checkpoint"
        )
        self._thread.start()
        return None

    @property
    def busy(self) -> bool:
        """Returns whether this rank has a save in progress."""
        return self._thread is not None and self._thread.is_alive()

    def wait(self, seconds: float | None = None) -> None:
        """Waits for this rank's part of the save in progress, which takes a bounded time."""
        if self._thread is not None:
            self._thread.join(seconds)

    def abandon(self) -> None:
        """Gives a save in progress GRACE_SECONDS to finish, then stops waiting for it."""
        self.wait(GRACE_SECONDS)
        self._abandoned = True

    def common_outcome(self) -> str | None:
        """Waits for the save in progress. Returns its problem or None, the same on all ranks."""
        self.wait()
        answer = [self._last.problem if self._last else None]
        dist.broadcast_object_list(answer, src=0)
        return answer[0]

    def _finish_or_abandon(self, save: Save) -> None:
        """Runs `_finish`. If torchrun's store is gone, the save fails, since no rank can commit."""
        try:
            self._finish(save)
        except dist.DistError:
            problem = "the store of the job (torch.distributed) no longer answers."
            self._last = Outcome(save.step, problem, save.stall_seconds, 0.0, 0, [])

    def _finish(self, save: Save) -> None:
        """Writes this rank's files and casts its vote; rank 0 then commits. It runs in a thread."""
        temporary = self.folder / f"step_{save.step}.tmp-{save.name}"
        vote: Vote = (None, save.problem)
        if save.problem is None:
            try:
                if save.copied is not None:
                    save.copied.synchronize()
                save.sources.clear()
                wrote = self.writer.call(
                    *(commit.write_shards, temporary, save.staged),
                    seconds=self.timeout_seconds,
                )
                vote = (wrote, None)
            except WriterError as error:
                vote = (None, f"{error}")
        if self._abandoned:
            return
        key = f"{save.name}/{self.processes.rank}"
        self._store.set(key, base64.b64encode(pickle.dumps(vote)).decode())
        if not self.processes.is_main:
            return
        removed: list[str] = []
        problem: str | None = None
        try:
            votes = self._collect_votes(save)
            final = self.folder / f"step_{save.step}"
            removed = self.writer.call(
                commit.commit,
                *(temporary, final, self._planner.metadata, votes, save.about, self.keep),
                seconds=self.timeout_seconds,
            )
        except WriterError as error:
            problem = f"{error}"
            self._discard(temporary)
        seconds = time.monotonic() - save.started
        size = save.staged.bytes if save.staged else 0
        self._last = Outcome(save.step, problem, save.stall_seconds, seconds, size, removed)
        self.outcomes.put(self._last)

    def _collect_votes(self, save: Save) -> list[Any]:
        """Returns the result of each rank. Raises WriterError if a rank failed or did not vote."""
        keys = [f"{save.name}/{rank}" for rank in range(self.processes.world_size)]
        deadline = save.started + self.timeout_seconds + GRACE_SECONDS
        while not self._store.check(keys):
            if self._abandoned:
                raise WriterError("the run ended before the checkpoint was written.")
            if time.monotonic() > deadline:
                silent = [rank for rank, key in enumerate(keys) if not self._store.check([key])]
                raise WriterError(
                    f"rank {', '.join(map(str, silent))} did not report which files were written."
                )
            time.sleep(POLL_SECONDS)
        votes: list[Vote] = [pickle.loads(base64.b64decode(self._store.get(key))) for key in keys]
        for key in keys:
            self._store.delete_key(key)
        for rank, (_, problem) in enumerate(votes):
            if problem is not None:
                raise WriterError(f"rank {rank}: {problem}")
        return [wrote for wrote, _ in votes]

    def _discard(self, temporary: Path) -> None:
        with contextlib.suppress(WriterError):  # the next start removes it
            self.writer.call(commit.discard, temporary, seconds=self.timeout_seconds)
