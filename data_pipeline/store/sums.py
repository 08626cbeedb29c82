"""Checksums of blocks of a shard, so that any part of it can be checked when it is first read.

`<shard>.sums` holds a little-endian uint64 for each 64 KiB of `<shard>.bin`, the last block may be
shorter: xxh3, 12 bytes in 100,000 of the shard. The sha256 of the whole is in the manifest.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import xxhash
from numpy.typing import NDArray

BLOCK_BYTES = 65536
SUM = np.dtype("<u8")


def block_sums(data: memoryview | bytes) -> NDArray[np.uint64]:
    """The sums of data that begins at the border of a block."""
    view = memoryview(data)
    starts = range(0, len(view), BLOCK_BYTES)
    sums = (xxhash.xxh3_64_intdigest(view[at : at + BLOCK_BYTES]) for at in starts)
    return np.fromiter(sums, SUM, len(starts))


def file_sums(path: Path, chunk_blocks: int = 256) -> Iterator[tuple[bytes, NDArray[np.uint64]]]:
    """A file's content and its sums, chunk by chunk."""
    with path.open("rb") as file:
        while data := file.read(chunk_blocks * BLOCK_BYTES):
            yield data, block_sums(data)
