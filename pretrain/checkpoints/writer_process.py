"""A helper process for file I/O, forked before CUDA is initialized.

A thread would compete with the trainer for the interpreter lock, and a hanging file system would
block it, or the trainer itself, with no way out. The helper is forked before the model, its threads
and CUDA exist, so it shares none of their memory. It forks again for each call, so that a call that
hangs can be killed without affecting the next one. The helper dies with the trainer.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection, Pipe
from typing import Any

import torch

from conf.errors import InputError
from conf.text import GIB
from pretrain.processes import die_with_parent

NICENESS = 19


class WriterError(Exception):
    """Raised if a call failed, died or timed out. The message is one sentence."""


class WriterProcess:
    """Runs functions in forked processes that share `memory` with this one."""

    def __init__(self) -> None:
        self._shared = os.memfd_create("checkpoint")
        self._view: mmap.mmap | None = None
        self._pinned_at: int | None = None
        self._lock = threading.Lock()
        self._socket, child_socket = socket.socketpair()
        trainer = os.getpid()
        child = os.fork()
        if child == 0:
            self._socket.close()
            _serve(child_socket, self._shared, trainer)
        child_socket.close()
        self.pid = child

    def memory(self, size: int, pinned: bool = False) -> mmap.mmap:
        """Returns at least `size` bytes of memory, which calls access through `shared_memory()`.

        The memory is allocated again only if it is too small.

        pinned: whether to page-lock the memory, for asynchronous copies from a GPU. If that is not
            possible, copies from a GPU block the host, and a warning says so.
        """
        if self._view is None or len(self._view) < size:
            self._unpin()
            size = max(size, mmap.PAGESIZE)
            os.ftruncate(self._shared, size)
            self._view = mmap.mmap(self._shared, size)
            if pinned:
                self._pin(self._view)
        return self._view

    def _pin(self, view: mmap.mmap) -> None:
        """Page-locks the memory, which takes seconds for tens of GB."""
        start = torch.frombuffer(view, dtype=torch.uint8).data_ptr()
        try:
            torch.cuda.check_error(torch.cuda.cudart().cudaHostRegister(start, len(view), 0))
        except RuntimeError as error:
            print(
                f"warning: the {len(view) / GIB:.1f} GiB for checkpoints cannot be pinned "
                f"({error}), so every save blocks training longer. Raise the limit of locked "
                "memory (ulimit -l).",
                file=sys.stderr,
                flush=True,
            )
            with contextlib.suppress(RuntimeError):  # the next launch would report this error again
                torch.ones(1, device="cuda")
            return
        self._pinned_at = start

    def _unpin(self) -> None:
        """Releases the page lock, without which the memory would stay allocated for good."""
        start, self._pinned_at = self._pinned_at, None
        if start is not None:
            torch.cuda.cudart().cudaHostUnregister(start)

    def call(self, function: Callable[..., Any], *arguments: Any, seconds: float) -> Any:
        """Runs a module-level function in its own process, and returns its result.

        Raises WriterError if the function fails, or if its process dies or is killed after
        `seconds`.
        """
        deadline = time.monotonic() + seconds
        ours, theirs = Pipe()
        with ours:
            with self._lock:
                socket.send_fds(self._socket, [b"."], [theirs.fileno()])
            theirs.close()
            worker = 0
            try:
                worker = self._answer(ours, deadline)
                ours.send((function, arguments))
                result, problem = self._answer(ours, deadline)
            except (EOFError, ConnectionError):
                raise WriterError("the process that writes checkpoints died.") from None
            except TimeoutError:
                if worker:
                    os.kill(worker, signal.SIGKILL)
                raise WriterError(f"the file system did not answer in {seconds:g} s.") from None
        if problem is not None:
            raise WriterError(problem)
        return result

    def close(self) -> None:
        """Ends the helper process and all running calls."""
        self._unpin()
        self._socket.close()
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        os.close(self._shared)

    @staticmethod
    def _answer(connection: Connection, deadline: float) -> Any:
        if not connection.poll(max(0.0, deadline - time.monotonic())):
            raise TimeoutError
        return connection.recv()


_memory: int = -1


def shared_memory() -> mmap.mmap:
    """Returns the trainer's `WriterProcess.memory`. It works only inside a call."""
    return mmap.mmap(_memory, os.fstat(_memory).st_size)


def _serve(child_socket: socket.socket, shared: int, trainer: int) -> None:
    """Forks a worker for each connection received through the socket. It never returns."""
    global _memory
    _memory = shared
    try:
        die_with_parent(trainer, signal.SIGKILL)
        # Signals to the whole job are for the trainer to handle; a save continues meanwhile.
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
            signal.signal(number, signal.SIG_IGN)
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
        while True:
            _, handles, _, _ = socket.recv_fds(child_socket, 1, 1)
            if not handles:
                os._exit(0)
            server = os.getpid()
            if os.fork() == 0:
                child_socket.close()
                die_with_parent(server, signal.SIGKILL)
                os.nice(NICENESS)
                _work(Connection(handles[0]))
            os.close(handles[0])
    finally:
        os._exit(1)


def _work(connection: Connection) -> None:
    """Runs one call, and sends its result or its error as a sentence. It never returns."""
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        torch.set_num_threads(1)
        connection.send(os.getpid())
        function, arguments = connection.recv()
        answer: tuple[Any, str | None]
        try:
            answer = function(*arguments), None
        except OSError as error:
            answer = None, f"{error.strerror}: {error.filename or 'a file of the checkpoint'}."
            if error.strerror is None:
                answer = None, str(error)
        except InputError as error:
            answer = None, str(error)
        except Exception as error:
            answer = None, f"{type(error).__name__}: {error}"
        connection.send(answer)
    finally:
        os._exit(0)
