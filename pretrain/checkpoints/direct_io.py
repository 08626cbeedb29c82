"""Writes and reads files with `O_DIRECT`, which bypasses the page cache.

Writing a checkpoint through the page cache would take several times the CPU time, and would evict
the shards of training data from the cache. Reading back must return the bytes on the disk, not
those in memory. On a file system without direct I/O, the same code uses the cache.
"""

from __future__ import annotations

import errno
import fcntl
import io
import mmap
import os
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import xxhash
from torch.distributed.checkpoint.filesystem import FileSystem

BLOCK_BYTES = 16 << 20
"""Number of bytes per read and write, a multiple of the block size of every disk."""


class DirectFile(io.RawIOBase):
    """A new file that is hashed while it is written, and durable once it is closed."""

    def __init__(self, path: Path) -> None:
        self._file = _open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        self._block = mmap.mmap(-1, BLOCK_BYTES)  # page-aligned, as direct I/O requires
        self._filled = self._written = 0
        self._hash = xxhash.xxh3_128()

    @property
    def digest(self) -> str:
        """Returns the XXH3-128 hash of the bytes written, in hexadecimal."""
        return self._hash.hexdigest()

    def writable(self) -> bool:
        """Returns True, as the interface of `io.RawIOBase` requires."""
        return True

    def tell(self) -> int:
        """Returns the number of bytes written so far."""
        return self._written + self._filled

    def write(self, data: Any) -> int:
        """Accepts all of `data`, and writes each block as it becomes full."""
        view = memoryview(data).cast("B")
        self._hash.update(view)
        taken = 0
        while taken < len(view):
            part = view[taken : taken + BLOCK_BYTES - self._filled]
            self._block[self._filled : self._filled + len(part)] = part
            self._filled += len(part)
            taken += len(part)
            if self._filled == BLOCK_BYTES:
                self._write_block(BLOCK_BYTES)
        return taken

    def close(self) -> None:
        """Writes the last block, and waits until the whole file is on the disk."""
        if self.closed:
            return
        try:
            _use_page_cache(self._file)  # direct I/O takes whole blocks only
            self._write_block(self._filled)
            os.fsync(self._file)
        finally:
            super().close()
            os.close(self._file)

    def _write_block(self, count: int) -> None:
        with memoryview(self._block) as block:
            done = 0
            while done < count:
                try:
                    done += os.write(self._file, block[done:count])
                except OSError as error:
                    if error.errno != errno.EINVAL or not _use_page_cache(self._file):
                        raise
        self._written += count
        self._filled = 0


class DirectFileSystem(FileSystem):
    """DCP's file system, based on `DirectFile`. digests: hashes of closed files by name."""

    def __init__(self) -> None:
        self.digests: dict[str, str] = {}

    @contextmanager
    def create_stream(
        self, path: str | os.PathLike[str], mode: str
    ) -> Generator[io.IOBase, None, None]:
        """Yields a new file that is open for writing."""
        with DirectFile(Path(path)) as file:
            yield file
        self.digests[Path(path).name] = file.digest


def digest(path: Path) -> str:
    """Returns the XXH3-128 hash of a file's bytes on the disk."""
    state = xxhash.xxh3_128()
    for block in _blocks(path):
        state.update(block)
    return state.hexdigest()


def _blocks(path: Path) -> Iterator[memoryview]:
    file = _open(path, os.O_RDONLY)
    view = memoryview(mmap.mmap(-1, BLOCK_BYTES))
    try:
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)  # if there is no direct I/O
        while True:
            try:
                count = os.readv(file, [view])
            except OSError as error:  # also raised at the end of a partial last block
                if error.errno != errno.EINVAL or not _use_page_cache(file):
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


def _use_page_cache(file: int) -> bool:
    """Turns off direct I/O for an open file, and returns whether it was on."""
    flags = fcntl.fcntl(file, fcntl.F_GETFL)
    fcntl.fcntl(file, fcntl.F_SETFL, flags & ~os.O_DIRECT)
    return bool(flags & os.O_DIRECT)
