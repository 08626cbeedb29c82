"""A cache on disk for blocks of remote files, of bounded size and shared by a process's threads."""

from __future__ import annotations

import os
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Iterable
from concurrent.futures import Future
from pathlib import Path

from conf.errors import InputError
from data_pipeline.store.checksums import BLOCK_BYTES

DEFAULT_CACHE_BYTES = 4 << 30
MIN_CACHE_BYTES = 16 * BLOCK_BYTES

Block = tuple[str, int]
"""A block, given by the URL of its file and its number in the file."""


def cache_folder() -> Path:
    """Returns the folder that caches remote files: `HEADWATER_CACHE` or ~/.cache/headwater."""
    return Path(os.environ.get("HEADWATER_CACHE") or Path.home() / ".cache" / "headwater")


class BlockCache:
    """Least-recently-used cache on disk for at most `limit_bytes` of blocks.

    Its file is unlinked as soon as it is open, so it disappears when the process ends.
    """

    def __init__(self, limit_bytes: int) -> None:
        if limit_bytes < MIN_CACHE_BYTES:
            raise InputError(f"data.cache_bytes={limit_bytes}: expected {MIN_CACHE_BYTES} or more.")
        self.limit_bytes = limit_bytes
        self.folder = cache_folder()
        self.folder.mkdir(parents=True, exist_ok=True)
        self._file = tempfile.TemporaryFile(dir=self.folder)  # noqa: SIM115
        self._slots: OrderedDict[Block, tuple[int, int]] = OrderedDict()  # (slot, size in bytes)
        self._pending: dict[Block, Future[bytes]] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._slots)

    def get(self, block: Block) -> bytes | None:
        """Returns a block, or None if it is not cached."""
        with self._lock:
            found = self._slots.get(block)
            if found is None:
                return None
            self._slots.move_to_end(block)
            slot, size = found
            return os.pread(self._file.fileno(), size, slot * BLOCK_BYTES)

    def claim(self, blocks: Iterable[Block]) -> tuple[list[Block], dict[Block, Future[bytes]]]:
        """Returns the missing blocks: those to fetch, and those that other threads are fetching.

        The caller must call `put` or `fail` for each block of the first kind.
        """
        claimed, pending = [], {}
        with self._lock:
            for block in blocks:
                if block in self._slots:
                    self._slots.move_to_end(block)
                elif block in self._pending:
                    pending[block] = self._pending[block]
                else:
                    self._pending[block] = Future()
                    claimed.append(block)
        return claimed, pending

    def put(self, block: Block, data: bytes) -> None:
        """Stores a claimed block, and evicts the least recently used one if the cache is full."""
        with self._lock:
            slot = len(self._slots)
            if (slot + 1) * BLOCK_BYTES > self.limit_bytes:
                slot = self._slots.popitem(last=False)[1][0]
            try:
                os.pwrite(self._file.fileno(), data, slot * BLOCK_BYTES)
            except OSError as error:
                raise InputError(
                    f"data.cache_bytes={self.limit_bytes}: writing to {self.folder} failed "
                    f"({error.strerror}). Free disk space, lower data.cache_bytes, or set "
                    "HEADWATER_CACHE to another folder."
                ) from error
            self._slots[block] = slot, len(data)
            self._pending.pop(block).set_result(data)

    def fail(self, blocks: Iterable[Block], error: BaseException) -> None:
        """Gives up claimed blocks. The error is raised in threads that wait for one of them."""
        with self._lock:
            for block in blocks:
                future = self._pending.pop(block, None)
                if future is not None:
                    future.set_exception(error)


_shared: BlockCache | None = None


def shared_cache(limit_bytes: int | None = None) -> BlockCache:
    """Returns this process's cache, and first replaces it if `limit_bytes` sets another limit."""
    global _shared
    if _shared is None or limit_bytes not in (None, _shared.limit_bytes):
        _shared = BlockCache(limit_bytes or DEFAULT_CACHE_BYTES)
    return _shared
