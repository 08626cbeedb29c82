"""Threads for what may take long or for ever: the process does not wait for them when it ends."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any, TypeVar

T = TypeVar("T")
Work = tuple[Callable[[], Any], "Future[Any]"]
_idle: list[SimpleQueue[Work]] = []
"""Where threads that have nothing to do wait for work."""
os.register_at_fork(after_in_child=_idle.clear)


def in_thread(call: Callable[[], T]) -> Future[T]:
    """Starts `call` in a thread that the process need not wait for when it ends: one that has
    nothing to do, where there is one. (Where memory is short, the start of a thread may fail
    without a word, and its starter waits for ever.)"""
    future: Future[T] = Future()
    try:
        place = _idle.pop()
    except IndexError:
        place = SimpleQueue()
        threading.Thread(target=_work, args=(place,), daemon=True, name="storage").start()
    place.put((call, future))
    return future


def _work(place: SimpleQueue[Work]) -> None:
    while True:
        call, future = place.get()
        try:
            result = call()
        except BaseException as error:
            _idle.append(place)
            future.set_exception(error)
        else:
            _idle.append(place)
            future.set_result(result)
            del result
        del call, future  # what they hold must not wait for the next work
