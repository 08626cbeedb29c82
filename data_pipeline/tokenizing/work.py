"""Work that survives its process: numbered tasks in phases, and a folder that remembers them.

A task is done when its marker is there, `<phase>/<number>.json`, written last and whole. Whoever
runs the command again does what is left, so a kill costs the tasks that were under way. Several
jobs share a folder by taking every `world`-th task; a second job for the same share is refused.
"""

from __future__ import annotations

import errno
import fcntl
import json
import multiprocessing
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

from conf.errors import InputError
from conf.files import clean, discard
from data_pipeline.files import write_json

SCANNED = ("plan.json", "scan", "match", "copies", "minhash")
"""What the first pass and the search for copies write, and whose work it is."""

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
PRELOAD = ("data_pipeline.tokenizing.encoding", "gigatoken")
"""Imports made once for all processes."""


@dataclass(frozen=True)
class Share:
    """This job's part of the work: the tasks whose number leaves `rank` over `world`."""

    rank: int = 0
    world: int = 1

    @classmethod
    def of_job(cls, rank: int | None, world: int | None) -> Share:
        """What is asked for, else what SLURM says: of an array each job, of a step each task."""
        if (rank is None) != (world is None):
            raise InputError(f"rank={rank} world={world}, expected both or none of them.")
        if rank is None or world is None:
            env = {k: int(v) for k, v in os.environ.items() if k in SLURM and v.isdigit()}
            jobs = env.get("SLURM_ARRAY_TASK_COUNT", 1)
            job = env.get("SLURM_ARRAY_TASK_ID", 0) - env.get("SLURM_ARRAY_TASK_MIN", 0)
            tasks = env.get("SLURM_STEP_NUM_TASKS", 1)
            rank = job * tasks + (env.get("SLURM_PROCID", 0) if tasks > 1 else 0)
            world = jobs * tasks
        if not 0 <= rank < world:
            raise InputError(f"rank={rank} world={world}, expected 0 <= rank < world.")
        return cls(rank, world)

    def of(self, tasks: Sequence[int]) -> list[int]:
        """The tasks of this job."""
        return [task for task in tasks if task % self.world == self.rank]


SLURM = (
    "SLURM_ARRAY_TASK_COUNT",
    "SLURM_ARRAY_TASK_ID",
    "SLURM_ARRAY_TASK_MIN",
    "SLURM_PROCID",
    "SLURM_STEP_NUM_TASKS",
)


class WorkFolder:
    """The folder of the work under way for `out`: `<out>.partial`."""

    def __init__(self, out: Path, share: Share) -> None:
        self.out = out
        self.path = out.with_name(out.name + ".partial")
        self.corpus = self.path / "corpus"
        self.share = share

    def check(self) -> None:
        """Raises InputError where the folder holds what no call for `out` left there."""
        clean(self.path)
        names = [path.name for path in self.path.iterdir()] if self.path.is_dir() else []
        own = ("lock", "plan.json", ".plan.json")
        strangers = [name for name in names if not name.startswith(own)]
        if (strangers and self.inputs() is None) or self.path.is_file():
            raise InputError(
                f"out={self.out}: {self.path} is in the way, where unfinished work is kept, and is "
                "not from an earlier call. Remove it, or choose another folder."
            )

    def inputs(self) -> str | None:
        """What the work under way is made of; None where there is none."""
        return self._plan().get("inputs")

    def _plan(self) -> dict[str, str]:
        plan = self.path / "plan.json"
        return json.loads(plan.read_text()) if plan.is_file() else {}

    @contextmanager
    def locked(self, inputs: str, scanned: str) -> Iterator[bool]:
        """Holds this job's share; yields whether earlier work is continued. Of work on other inputs
        what depends on `scanned` alone is kept where that is the same, all else is removed.

        Raises InputError where another process holds the share."""
        self.path.mkdir(parents=True, exist_ok=True)
        names = ["lock"] if self.share.world == 1 else ["lock", f"lock-{self.share.rank}"]
        files = [(self.path / name).open("a") for name in names]
        try:
            alone = self.share.world == 1
            self._lock(files[0], fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
            if not alone:
                self._lock(files[1], fcntl.LOCK_EX)
            found, same_scan = self.inputs(), self._plan().get("scanned") == scanned
            if found != inputs:
                if found is not None:
                    self._lock(files[0], fcntl.LOCK_EX)
                    self.clear(SCANNED if same_scan else ())
                    if not alone:
                        self._lock(files[0], fcntl.LOCK_SH)
                write_json(self.path / "plan.json", {"inputs": inputs, "scanned": scanned})
            yield found == inputs or same_scan
        finally:
            for file in files:
                file.close()

    def _lock(self, file: Any, how: int) -> None:
        try:
            fcntl.flock(file, how | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(
                f"{self.path} is being written by another process: wait for it, or name another "
                "out=; several jobs share the work with rank= and world=."
            ) from None
        except OSError as error:  # a file system without locks
            if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
                raise

    def marker(self, phase: str, task: int) -> Path:
        """Where the result of a task lies when it is done."""
        return self.path / phase / f"{task:06}.json"

    def left(self, phase: str, tasks: int) -> list[int]:
        """The tasks of a phase that are not done."""
        folder = self.path / phase
        done = {entry.name for entry in os.scandir(folder)} if folder.is_dir() else set()
        return [task for task in range(tasks) if f"{task:06}.json" not in done]

    def result(self, phase: str, task: int) -> Any:
        """What a task that is done returned."""
        return json.loads(self.marker(phase, task).read_text())

    def begun(self) -> bool:
        """Whether any task is done, so that there is something to go on with."""
        return any(self.path.glob("*/*.json"))

    def mark_whole(self) -> None:
        """Remembers the folder that is to become `out`, for `renamed`."""
        write_json(self.path / "whole.json", self.corpus.stat().st_ino)

    def renamed(self) -> bool:
        """Whether all was done, and the corpus is where it belongs already."""
        if (self.path / "encode").is_dir() and not self.corpus.is_dir():
            return True
        mark = self.path / "whole.json"
        is_marked = mark.is_file() and self.out.is_dir()
        return is_marked and json.loads(mark.read_text()) == self.out.stat().st_ino

    def clear(self, kept: Sequence[str] = ()) -> None:
        """Removes the work but for what is `kept` and the locks."""
        # A folder without corpus/ counts as whole while encode/ is there, and plan.json tells whose
        # it is: they go last.
        last = ("corpus", "plan.json")
        for path in sorted(self.path.iterdir(), key=lambda path: (path.name in last, path.name)):
            if path.name in kept:
                continue
            if path.is_dir():
                shutil.rmtree(path)
            elif not path.name.startswith("lock"):
                path.unlink()

    def remove(self) -> None:
        """Removes the folder."""
        discard(self.path)


class Workers:
    """Runs tasks in processes; with one worker, or a single task, in this process."""

    def __init__(self, count: int) -> None:
        self.count = count or len(os.sched_getaffinity(0))
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> Workers:
        if self.count > 1:
            context = multiprocessing.get_context("forkserver")
            context.set_forkserver_preload(list(PRELOAD))
            # The imports begin now, while this process does what comes before the first task.
            forkserver.ensure_running()
            self._pool = ProcessPoolExecutor(self.count, mp_context=context)
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def run(
        self, folder: WorkFolder, phase: str, tasks: Sequence[tuple[int, Callable[..., Any], Any]]
    ) -> Iterator[tuple[int, Any]]:
        """Runs (number, function, arguments) of a phase; yields numbers and results as they end.
        The first that fails ends all.

        Raises InputError where a process was killed or the disk is full.
        """
        try:
            if self._pool is None or len(tasks) == 1:
                for number, function, arguments in tasks:
                    yield number, _run_task(folder.marker(phase, number), function, arguments)
                return
            jobs: dict[Future[Any], int] = {
                self._pool.submit(_run_task, folder.marker(phase, number), *what): number
                for number, *what in tasks
            }
            for job in as_completed(jobs):
                yield jobs[job], job.result()
        except BrokenProcessPool:
            raise InputError(
                "a worker process was killed, most likely for want of memory: lower workers= or "
                "corpus.shard_bytes and run the same command again."
            ) from None
        except OSError as error:
            if error.errno not in DISK_FULL:
                raise
            raise InputError(
                f"{folder.path} cannot grow ({error.strerror}): make room and run the same "
                "command again, which goes on where this one stopped."
            ) from None


def _run_task(marker: Path, function: Callable[..., Any], arguments: Any) -> Any:
    result = function(*arguments)
    write_json(marker, result)
    return result
