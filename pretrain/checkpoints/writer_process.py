"""A process beside the trainer for work on files.

A thread would fight the trainer for the interpreter's lock, and neither a thread nor the trainer
itself can be freed from a file system that hangs. The process is forked before the model, its
threads and CUDA exist, so it holds no memory, and forks once more for each call: what hangs is
killed, and the next call starts afresh. It dies with the trainer.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection, Pipe
from typing import Any

import torch

from conf.errors import InputError

NICENESS = 19
PR_SET_PDEATHSIG = 1


class AsideError(Exception):
    """A call that failed, died or took too long; the message is one sentence."""


class Aside:
    """Runs functions in processes of their own, which share `memory` with this one."""

    def __init__(self) -> None:
        self._shared = os.memfd_create("checkpoint")
        self._view: mmap.mmap | None = None
        self._lock = threading.Lock()
        self._door, door = socket.socketpair()
        trainer = os.getpid()
        child = os.fork()
        if child == 0:
            self._door.close()
            _serve(door, self._shared, trainer)
        door.close()
        self.pid = child

    def memory(self, size: int, pinned: bool = False) -> mmap.mmap:
        """Memory of at least `size` bytes that calls see as `shared_memory()`, made once; pinned,
        for copies from a GPU that the host does not wait for."""
        if self._view is None or len(self._view) < size:
            size = max(size, mmap.PAGESIZE)
            os.ftruncate(self._shared, size)
            self._view = mmap.mmap(self._shared, size)
            if pinned:
                start = torch.frombuffer(self._view, dtype=torch.uint8).data_ptr()
                torch.cuda.check_error(torch.cuda.cudart().cudaHostRegister(start, size, 0))
        return self._view

    def call(self, function: Callable[..., Any], *arguments: Any, seconds: float) -> Any:
        """The result of a function of a module, run aside; bounded by `seconds`.

        Raises AsideError with what it raised, or where it died or was killed for being late.
        """
        ends = time.monotonic() + seconds
        ours, theirs = Pipe()
        with ours:
            with self._lock:
                socket.send_fds(self._door, [b"."], [theirs.fileno()])
            theirs.close()
            worker = 0
            try:
                worker = self._answer(ours, ends)
                ours.send((function, arguments))
                result, problem = self._answer(ours, ends)
            except (EOFError, ConnectionError):
                raise AsideError("the process that writes died.") from None
            except TimeoutError:
                if worker:
                    os.kill(worker, signal.SIGKILL)
                raise AsideError(f"the file system did not answer in {seconds:g} s.") from None
        if problem is not None:
            raise AsideError(problem)
        return result

    def close(self) -> None:
        """Ends the process; calls that run are ended with it."""
        self._door.close()
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        os.close(self._shared)

    @staticmethod
    def _answer(connection: Connection, ends: float) -> Any:
        if not connection.poll(max(0.0, ends - time.monotonic())):
            raise TimeoutError
        return connection.recv()


_memory: int = -1
_trainer: int | None = None


def shared_memory() -> mmap.mmap:
    """In a call: what the trainer has in `Aside.memory`."""
    return mmap.mmap(_memory, os.fstat(_memory).st_size)


def trainer_pid() -> int | None:
    """In a call: the trainer's process."""
    return _trainer


def _serve(door: socket.socket, shared: int, trainer: int) -> None:
    """Forks a worker for each connection that comes through the door; never returns."""
    global _memory, _trainer
    _memory, _trainer = shared, trainer
    try:
        _die_with(trainer)
        # Signals for the whole job are the trainer's to answer; a save goes on meanwhile.
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
            signal.signal(number, signal.SIG_IGN)
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
        while True:
            _, handles, _, _ = socket.recv_fds(door, 1, 1)
            if not handles:
                os._exit(0)
            server = os.getpid()
            if os.fork() == 0:
                door.close()
                _die_with(server)
                os.nice(NICENESS)
                _work(Connection(handles[0]))
            os.close(handles[0])
    finally:
        os._exit(1)


def _work(connection: Connection) -> None:
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        torch.set_num_threads(1)
        connection.send(os.getpid())
        function, arguments = connection.recv()
        answer: tuple[Any, str | None]
        try:
            answer = function(*arguments), None
        except OSError as error:
            answer = None, f"{error.strerror}: {error.filename or 'a file of it'}."
            if error.strerror is None:
                answer = None, str(error)
        except InputError as error:
            answer = None, str(error)
        except Exception as error:
            answer = None, f"{type(error).__name__}: {error}"
        connection.send(answer)
    finally:
        os._exit(0)


def _die_with(parent: int) -> None:
    """Lets the kernel kill this process when its parent ends, however that ends."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
