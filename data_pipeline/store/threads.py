"""Runs calls that may block indefinitely in daemon threads, which do not keep the process alive."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any, TypeVar

T = TypeVar("T")
Task = tuple[Callable[[], Any], "Future[Any]"]
_idle: list[SimpleQueue[Task]] = []
"""Task queues of the idle threads."""
os.register_at_fork(after_in_child=_idle.clear)


def in_thread(call: Callable[[], T]) -> Future[T]:
    """Runs `call` in a daemon thread, and returns the future of its result.

    Idle threads are reused, because starting a thread can hang: if memory is short, the new thread
    may fail silently while the thread that started it waits for it.
    """
    future: Future[T] = Future()
    try:
        queue = _idle.pop()
    except IndexError:
        queue = SimpleQueue()
        threading.Thread(target=_run_tasks, args=(queue,), daemon=True, name="storage").start()
    queue.put((call, future))
    return future


def _run_tasks(queue: SimpleQueue[Task]) -> None:
    while True:
        call, future = queue.get()
        try:
            result = call()
        except BaseException as error:
            _idle.append(queue)
            future.set_exception(error)
        else:
            _idle.append(queue)
            future.set_result(result)
            del result
        del call, future  # otherwise their objects would stay alive until the next task
