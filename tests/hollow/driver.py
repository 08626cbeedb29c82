"""Calls the hollow GPU's own functions, which record what a process asks of its GPU."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

from tests.hollow.trace import Trace


def active() -> bool:
    """Returns whether this process has a hollow GPU instead of CUDA's libraries."""
    return hasattr(ctypes.CDLL(None), "hollow_record")


class Recording:
    """Calls of a block of code to the GPU; `trace` is complete once the block has ended."""

    def __init__(self) -> None:
        self.trace = Trace([])

    def mark(self, name: str) -> None:
        """Marks this place, for `Trace.between`."""
        ctypes.CDLL(None).hollow_mark(name.encode())


@contextmanager
def recording() -> Iterator[Recording]:
    """Records the calls of all threads of this process until the block ends."""
    library = ctypes.CDLL(None)
    library.hollow_take.restype = ctypes.c_void_p
    library.hollow_record()
    kept = Recording()
    try:
        yield kept
    finally:
        taken = library.hollow_take()
        text = ctypes.string_at(taken).decode(errors="replace")
        library.hollow_free(ctypes.c_void_p(taken))
        kept.trace = Trace(text.splitlines())
