"""Output that may get lost: a log on a full disk, a pipe whose reader went away or a terminal that
was closed ends no work that takes days."""

from __future__ import annotations

import io
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TextIO


class Lossy(io.TextIOBase):
    """Writes what a text stream is given, and drops what its file does not take."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._descriptor = stream.fileno()
        self._waiting = ""
        self._lock = threading.Lock()

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """Of the stream."""
        return self._stream.encoding

    def fileno(self) -> int:
        """Of the stream."""
        return self._descriptor

    def isatty(self) -> bool:
        """Whether the stream is a terminal's."""
        return self._stream.isatty()

    def writable(self) -> bool:
        """It is."""
        return True

    def write(self, text: str) -> int:
        """Takes all of it; whole lines are written at once."""
        with self._lock:
            self._waiting += text
        if "\n" in text:
            self.flush()
        return len(text)

    def flush(self) -> None:
        """Writes what waits for the end of its line."""
        with self._lock, suppress(OSError):
            left, self._waiting = self._waiting.encode(self.encoding, "replace"), ""
            while left:
                left = left[os.write(self._descriptor, left) :]


@contextmanager
def may_get_lost() -> Iterator[None]:
    """Within it, nothing that is printed can fail."""
    before = sys.stdout, sys.stderr
    try:
        for stream in before:
            stream.flush()
        sys.stdout, sys.stderr = (_lossy(stream) for stream in before)
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        sys.stdout, sys.stderr = before


def say(sentence: str) -> None:
    """Prints to stderr what is said last: an exit code must not depend on who reads."""
    try:
        print(sentence, file=sys.stderr, flush=True)
    except OSError:  # what stays in the buffer would fail again at the exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())


def _lossy(stream: TextIO) -> TextIO:
    try:
        return Lossy(stream)  # type: ignore[return-value]
    except OSError:  # of no file, as where output is captured
        return stream
