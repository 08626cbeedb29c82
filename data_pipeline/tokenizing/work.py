"""Resumable work: phases of numbered tasks, whose results are kept in a work folder.

A task is done once its marker `<phase>/<number>.json` exists, which is written last and atomically.
Running the command again runs the remaining tasks, so if it is killed, only the tasks in progress
are lost. Several jobs can share a work folder: job `rank` of `world` runs every `world`-th task,
and a second job with the same rank is refused.
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
from conf.outputs import DISK_FULL
from data_pipeline.files import write_json

SCANNED = (
    *("plan.json", "scan", "dedup.json", "match", "merge", "copies", "minhash", "urls"),
    *("settle", "paragraphs", "paragraphs.json", "count", "collect"),
)
"""Files and folders that the phases before prepare write, and the file that names their inputs."""
LAYOUT = 4
"""Version of the work folder. Unfinished work of another version is discarded."""

PRELOAD = ("data_pipeline.tokenizing.encoding", "gigatoken")
"""Modules that the fork server imports once for all worker processes."""
SLURM_VARIABLES = (
    "SLURM_ARRAY_TASK_COUNT",
    "SLURM_ARRAY_TASK_ID",
    "SLURM_ARRAY_TASK_MIN",
    "SLURM_PROCID",
    "SLURM_STEP_NUM_TASKS",
)


@dataclass(frozen=True)
class JobShard:
    """The share of one of several jobs: the tasks whose number modulo `world` is `rank`."""

    rank: int = 0
    world: int = 1

    @classmethod
    def resolve(cls, rank: int | None, world: int | None) -> JobShard:
        """Returns the share given by the arguments, or else by the environment variables of SLURM.

        Under SLURM, each job of an array and each task of a job step has its own share. Raises
        InputError if only one argument is given, or if `rank` is out of range.
        """
        if (rank is None) != (world is None):
            raise InputError(f"rank={rank} world={world}: expected both keys or neither.")
        if rank is None or world is None:
            env = {k: int(v) for k, v in os.environ.items() if k in SLURM_VARIABLES and v.isdigit()}
            jobs = env.get("SLURM_ARRAY_TASK_COUNT", 1)
            job = env.get("SLURM_ARRAY_TASK_ID", 0) - env.get("SLURM_ARRAY_TASK_MIN", 0)
            tasks = env.get("SLURM_STEP_NUM_TASKS", 1)
            rank = job * tasks + (env.get("SLURM_PROCID", 0) if tasks > 1 else 0)
            world = jobs * tasks
        if not 0 <= rank < world:
            raise InputError(f"rank={rank} world={world}: expected 0 <= rank < world.")
        return cls(rank, world)

    def select(self, tasks: Sequence[int]) -> list[int]:
        """Returns the tasks that belong to this job."""
        return [task for task in tasks if task % self.world == self.rank]


class WorkFolder:
    """The folder `<out>.partial`, which holds the unfinished work for an output.

    Args:
        out: Path of the output.
        job_shard: Share of this job.
        content: Name of the subfolder that becomes the output.
    """

    def __init__(self, out: Path, job_shard: JobShard, content: str = "corpus") -> None:
        self.out = out
        self.path = out.with_name(out.name + ".partial")
        self.content = self.path / content
        self.job_shard = job_shard

    def check(self) -> None:
        """Raises InputError if the folder holds files that no earlier run for `out` wrote."""
        clean(self.path)
        names = [path.name for path in self.path.iterdir()] if self.path.is_dir() else []
        own = ("lock", "plan.json", ".plan.json")
        foreign = [name for name in names if not name.startswith(own)]
        if (foreign and self.inputs() is None) or self.path.is_file():
            raise InputError(
                f"out={self.out}: unfinished work would be stored in {self.path}, which exists and "
                "was not made by an earlier call. Remove it, or choose another out."
            )

    def inputs(self) -> str | None:
        """Returns the fingerprint of the unfinished work's inputs, or None if there is none."""
        return self._plan().get("inputs")

    def _plan(self) -> dict[str, Any]:
        path = self.path / "plan.json"
        plan = json.loads(path.read_text()) if path.is_file() else {}
        return plan if not plan or plan.get("layout") == LAYOUT else {"inputs": "", "scanned": ""}

    @contextmanager
    def locked(self, inputs: str, scanned: str) -> Iterator[bool]:
        """Holds the lock of this job's share, and yields True if earlier work is resumed.

        Earlier work on different inputs is removed, except for that of the phases up to merge if
        `scanned`, the fingerprint of their inputs, is unchanged. Raises InputError if another
        process holds the lock.
        """
        with self.held() as lock:
            found, same_scan = self.inputs(), self._plan().get("scanned") == scanned
            if found != inputs:
                if found is not None:
                    self._lock(lock, fcntl.LOCK_EX)
                    self.clear(SCANNED if same_scan else ())
                    if self.job_shard.world > 1:
                        self._lock(lock, fcntl.LOCK_SH)
                plan = {"layout": LAYOUT, "inputs": inputs, "scanned": scanned}
                write_json(self.path / "plan.json", plan)
            yield found == inputs or same_scan

    @contextmanager
    def held(self) -> Iterator[Any]:
        """Holds the lock of this job's share, and yields the file that all jobs lock.

        Raises InputError if another process holds the lock.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        names = ["lock"] if self.job_shard.world == 1 else ["lock", f"lock-{self.job_shard.rank}"]
        files = [(self.path / name).open("a") for name in names]
        try:
            single = self.job_shard.world == 1
            self._lock(files[0], fcntl.LOCK_EX if single else fcntl.LOCK_SH)
            if not single:
                self._lock(files[1], fcntl.LOCK_EX)
            yield files[0]
        finally:
            for file in files:
                file.close()

    def _lock(self, file: Any, mode: int) -> None:
        try:
            fcntl.flock(file, mode | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(
                f"{self.path} is being written by another process. Wait for that process, choose "
                "another out, or divide the work among jobs with rank and world."
            ) from None
        except OSError as error:  # a file system without lock support
            if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
                raise

    def marker(self, phase: str, task: int) -> Path:
        """Returns the path of a task's result, which exists once the task is done."""
        return self.path / phase / f"{task:06}.json"

    def remaining(self, phase: str, tasks: int) -> list[int]:
        """Returns the tasks of a phase that are not done."""
        folder = self.path / phase
        done = {entry.name for entry in os.scandir(folder)} if folder.is_dir() else set()
        return [task for task in range(tasks) if f"{task:06}.json" not in done]

    def result(self, phase: str, task: int) -> Any:
        """Returns the result of a finished task."""
        return json.loads(self.marker(phase, task).read_text())

    def has_results(self) -> bool:
        """Returns True if any task is done, so that there is work to resume."""
        return any(self.path.glob("*/*.json"))

    def mark_complete(self) -> None:
        """Records the inode of the finished content, which `is_renamed` compares."""
        write_json(self.path / "whole.json", self.content.stat().st_ino)

    def is_renamed(self) -> bool:
        """Returns True if the finished content has already been renamed to `out`."""
        if (self.path / "encode").is_dir() and not self.content.is_dir():
            return True
        mark = self.path / "whole.json"
        is_marked = mark.is_file() and self.out.is_dir()
        return is_marked and json.loads(mark.read_text()) == self.out.stat().st_ino

    def clear(self, kept: Sequence[str] = ()) -> None:
        """Removes everything except for the lock files and the entries named in `kept`."""
        # content and plan.json are removed last: a folder with encode/ but without content counts
        # as finished, and plan.json identifies the inputs.
        last = (self.content.name, "plan.json")
        for path in sorted(self.path.iterdir(), key=lambda path: (path.name in last, path.name)):
            if path.name in kept:
                continue
            if path.is_dir():
                shutil.rmtree(path)
            elif not path.name.startswith("lock"):
                path.unlink()

    def remove(self) -> None:
        """Removes the whole work folder."""
        discard(self.path)


class Workers:
    """A pool of worker processes. One worker or one task runs in the calling process."""

    def __init__(self, count: int) -> None:
        self.count = count or len(os.sched_getaffinity(0))
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> Workers:
        if self.count > 1:
            context = multiprocessing.get_context("forkserver")
            context.set_forkserver_preload(list(PRELOAD))
            # Starts the imports now, so that they overlap with this process's own preparations.
            forkserver.ensure_running()
            self._pool = ProcessPoolExecutor(self.count, mp_context=context)
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def run(
        self, folder: WorkFolder, phase: str, tasks: Sequence[tuple[int, Callable[..., Any], Any]]
    ) -> Iterator[tuple[int, Any]]:
        """Runs the tasks of a phase, and yields (number, result) of each as it finishes.

        A task is (number, function, arguments). The first task that fails ends the phase. Raises
        InputError if a worker process was killed or the disk is full.
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
                "A worker process was killed, most likely because memory ran out. Lower workers "
                "or corpus.shard_bytes, and run the same command again."
            ) from None
        except OSError as error:
            if error.errno not in DISK_FULL:
                raise
            raise InputError(
                f"{folder.path} cannot be written ({error.strerror}). Free some space and run the "
                "same command again, which resumes from the finished tasks."
            ) from None


def _run_task(marker: Path, function: Callable[..., Any], arguments: Any) -> Any:
    result = function(*arguments)
    write_json(marker, result)
    return result
