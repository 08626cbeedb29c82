"""Files written and read past the page cache.

Through the page cache, a checkpoint costs the training several seconds of CPU a GB in copies and
writeback, and pushes out the shards of data that the cache held; and what is read back from it is
memory, not the disk. Where a file system cannot go past its cache, the same goes through it.
"""

from __future__ import annotations

import errno
import fcntl
import io
import mmap
import os
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import xxhash
from torch.distributed.checkpoint.filesystem import FileSystem

BLOCK_BYTES = 16 << 20  # a multiple of every disk's block


REST_SECONDS = 0.05


class Pace:
    """A `share` of one core's time, with a rest after each whole block; none once `hurry` says so,
    or `seconds` have passed: a slow disk must not have the writer taken for one that hangs. Waiting
    for the disk is no work: it holds nobody up."""

    def __init__(self, share: float, seconds: float, hurry: Callable[[], bool]) -> None:
        self.share, self.hurry = share, hurry
        self._began, self._worked = time.monotonic(), time.process_time()
        self._ends = self._began + seconds

    def rest(self) -> None:
        """As long as the block before it calls for."""
        worked = time.process_time() - self._worked
        ends = min(self._began + worked / self.share, self._ends)
        while (left := ends - time.monotonic()) > 0 and not self.hurry():
            time.sleep(min(left, REST_SECONDS))
        self._began, self._worked = time.monotonic(), time.process_time()


class DirectFile(io.RawIOBase):
    """A new file that is durable when it closes. digest: XXH3-128 of what was written to it."""

    def __init__(self, path: Path, pace: Pace | None = None) -> None:
        self._pace = pace
        self._file = _open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        self._block = mmap.mmap(-1, BLOCK_BYTES)  # on a page's border, as direct writes need
        self._filled = self._written = 0
        self._hash = xxhash.xxh3_128()

    @property
    def digest(self) -> str:
        """XXH3-128, in hexadecimal digits."""
        return self._hash.hexdigest()

    def writable(self) -> bool:
        """It is."""
        return True

    def tell(self) -> int:
        """Bytes written."""
        return self._written + self._filled

    def write(self, data: Any) -> int:
        """Takes all of `data`."""
        view = memoryview(data).cast("B")
        self._hash.update(view)
        taken = 0
        while taken < len(view):
            part = view[taken : taken + BLOCK_BYTES - self._filled]
            self._block[self._filled : self._filled + len(part)] = part
            self._filled += len(part)
            taken += len(part)
            if self._filled == BLOCK_BYTES:
                self._put(BLOCK_BYTES)
                if self._pace:
                    self._pace.rest()
        return taken

    def close(self) -> None:
        """Writes the rest, and waits until the disk has it all."""
        if self.closed:
            return
        try:
            _buffer(self._file)  # the rest is no whole block
            self._put(self._filled)
            os.fsync(self._file)
        finally:
            super().close()
            os.close(self._file)

    def _put(self, count: int) -> None:
        with memoryview(self._block) as block:
            done = 0
            while done < count:
                try:
                    done += os.write(self._file, block[done:count])
                except OSError as error:
                    if error.errno != errno.EINVAL or not _buffer(self._file):
                        raise
        self._written += count
        self._filled = 0


class DirectFiles(FileSystem):
    """DCP's files, each a `DirectFile`. digests: of those that are closed, by name."""

    def __init__(self, pace: Pace | None = None) -> None:
        self.digests: dict[str, str] = {}
        self._pace = pace

    @contextmanager
    def create_stream(
        self, path: str | os.PathLike[str], mode: str
    ) -> Generator[io.IOBase, None, None]:
        """A new file."""
        with DirectFile(Path(path), self._pace) as file:
            yield file
        self.digests[Path(path).name] = file.digest


def digest(path: Path, pace: Pace | None = None) -> str:
    """XXH3-128 of what the disk has."""
    state = xxhash.xxh3_128()
    for block in _blocks(path):
        state.update(block)
        if pace and len(block) == BLOCK_BYTES:
            pace.rest()
    return state.hexdigest()


def _blocks(path: Path) -> Iterator[memoryview]:
    file = _open(path, os.O_RDONLY)
    view = memoryview(mmap.mmap(-1, BLOCK_BYTES))
    try:
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)  # where it goes through the cache
        while True:
            try:
                count = os.readv(file, [view])
            except OSError as error:  # at the end of a file that is no whole block, too
                if error.errno != errno.EINVAL or not _buffer(file):
                    raise
                continue
            if count == 0:
                return
            yield view[:count]
    finally:
        os.close(file)


def _open(path: Path, flags: int) -> int:
    try:
        return os.open(path, flags | os.O_DIRECT, 0o666)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return os.open(path, flags, 0o666)


def _buffer(file: int) -> bool:
    """Sends the rest of a file through the page cache; whether it went past it before."""
    flags = fcntl.fcntl(file, fcntl.F_GETFL)
    fcntl.fcntl(file, fcntl.F_SETFL, flags & ~os.O_DIRECT)
    return bool(flags & os.O_DIRECT)
