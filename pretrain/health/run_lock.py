"""The lock of a run folder, so that only one job at a time uses it.

On one machine, the kernel's file lock decides; the kernel releases it when the process dies. Some
file systems do not share such locks between machines, so the holder also touches the file every few
seconds. If another host's lock is not touched, its holder counts as dead. The clocks of different
machines are never compared.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch.distributed as dist

from conf.errors import InputError
from pretrain.processes import Processes

TOUCH_SECONDS = 5.0
WATCH_SECONDS = 4 * TOUCH_SECONDS
"""Time for which a new start waits for another host to touch its lock."""


@contextmanager
def locked(run_dir: Path, processes: Processes) -> Iterator[None]:
    """Holds the lock of a run folder. All ranks call it, and rank 0 takes the lock.

    Raises InputError on all ranks if another job holds it. Removes the folder at the end if it is
    empty.
    """
    lock: RunLock | None = None
    answer: list[Any] = [None]
    if processes.is_main:
        try:
            lock = RunLock(run_dir)
        except InputError as error:
            answer = [error]
        except OSError:
            pass  # later checks refuse a folder that cannot be written
    dist.broadcast_object_list(answer, src=0)
    if answer[0] is not None:
        raise answer[0]
    try:
        yield
    finally:
        if lock is not None:
            lock.release()


class RunLock:
    """The lock of a run folder. The folder is created if it is missing."""

    def __init__(self, run_dir: Path) -> None:
        self.path = run_dir / "lock"
        run_dir.mkdir(parents=True, exist_ok=True)
        while True:
            self.file = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
            if not self._flock():
                raise InputError(self._sentence(_read(self.file)))
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(self.file), os.stat(self.path)):
                    break
            os.close(self.file)  # the holder removed the file in the meantime
        holder = _read(self.file)
        here = socket.gethostname()
        if holder and holder.get("host") != here and self._is_touched():
            os.close(self.file)
            raise InputError(self._sentence(holder))
        about = {"host": here, "pid": os.getpid(), "job": os.environ.get("SLURM_JOB_ID")}
        os.ftruncate(self.file, 0)
        os.pwrite(self.file, json.dumps(about).encode(), 0)
        os.fsync(self.file)
        self._released = threading.Event()
        threading.Thread(target=self._touch, daemon=True, name="run lock").start()

    def release(self) -> None:
        """Removes the lock, and the folder if it is empty."""
        self._released.set()
        self.path.unlink(missing_ok=True)
        os.close(self.file)
        with suppress(OSError):
            self.path.parent.rmdir()

    def _flock(self) -> bool:
        try:
            fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:
            pass  # this file system has no such locks, so only touches decide
        return True

    def _is_touched(self) -> bool:
        seen = self._touched_at()
        ends = time.monotonic() + WATCH_SECONDS
        while time.monotonic() < ends:
            time.sleep(min(1.0, WATCH_SECONDS / 4))
            if self._touched_at() != seen:
                return True
        return False

    def _touched_at(self) -> int:
        file = os.open(self.path, os.O_RDONLY)  # opening makes network file systems refresh
        try:
            return os.fstat(file).st_mtime_ns
        finally:
            os.close(file)

    def _touch(self) -> None:
        while not self._released.wait(TOUCH_SECONDS):
            with suppress(OSError):
                os.utime(self.path)

    def _sentence(self, holder: dict[str, Any]) -> str:
        job = f", job {holder['job']}" if holder.get("job") else ""
        who = f"pid {holder.get('pid', '?')} on {holder.get('host', 'this host')}{job}"
        return (
            f"{self.path.parent} is in use by {who}. Wait until that run ends, stop it, or choose "
            "another run_dir."
        )


def _read(file: int) -> dict[str, Any]:
    try:
        found = json.loads(os.pread(file, 4096, 0))
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
