"""Terminal output: streams that never fail, error messages, and hidden warnings.

A log on a full disk, a pipe whose reader exited or a closed terminal must not end a long run.
"""

from __future__ import annotations

import io
import logging
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TextIO


class BestEffortStream(io.TextIOBase):
    """A text stream that drops output that its file does not accept."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._descriptor = stream.fileno()
        self._buffer = ""
        self._lock = threading.Lock()

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """Returns the encoding of the underlying stream."""
        return self._stream.encoding

    def fileno(self) -> int:
        """Returns the descriptor of the underlying stream."""
        return self._descriptor

    def isatty(self) -> bool:
        """Returns True if the underlying stream is a terminal."""
        return self._stream.isatty()

    def writable(self) -> bool:
        """Returns True, because this stream can always be written to."""
        return True

    def write(self, text: str) -> int:
        """Buffers the text and writes the buffer at the end of each line."""
        with self._lock:
            self._buffer += text
        if "\n" in text:
            self.flush()
        return len(text)

    def flush(self) -> None:
        """Writes the buffer, and drops the rest of it on an error."""
        with self._lock, suppress(OSError):
            pending, self._buffer = self._buffer.encode(self.encoding, "replace"), ""
            while pending:
                pending = pending[os.write(self._descriptor, pending) :]


@contextmanager
def tolerate_broken_output() -> Iterator[None]:
    """Replaces stdout and stderr with best-effort streams, so that no print can fail."""
    before = sys.stdout, sys.stderr
    try:
        for stream in before:
            stream.flush()
        sys.stdout, sys.stderr = (_best_effort(stream) for stream in before)
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        sys.stdout, sys.stderr = before


def print_error(sentence: str) -> None:
    """Prints to stderr without ever failing, so that a broken pipe cannot change the exit code."""
    try:
        print(sentence, file=sys.stderr, flush=True)
    except OSError:  # the buffered rest would fail again when Python exits
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())


def silence_torchao() -> None:
    """Hides warnings from importing torchao, about kernels for other machines and a deprecation.

    This must be called before torchao is imported, be it directly or by a library. peft, for
    example, imports torchao if it is installed.
    """
    logging.getLogger("torchao").setLevel(logging.ERROR)
    logging.getLogger("torch.utils._pytree").addFilter(
        lambda record: "register_constant" not in record.getMessage()
    )


def _best_effort(stream: TextIO) -> TextIO:
    try:
        return BestEffortStream(stream)  # type: ignore[return-value]
    except OSError:  # a stream without a descriptor, such as captured output
        return stream
