"""Checksums of the blocks of a shard, which verify any part of it when it is first read.

`<shard>.sums` holds one xxh3 checksum, a little-endian uint64, per block of 64 KiB of
`<shard>.bin`, which adds 0.012% to its size. The last block may be shorter. The manifest holds the
sha256 of the whole file.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import xxhash
from numpy.typing import NDArray

BLOCK_BYTES = 65536
CHECKSUM = np.dtype("<u8")


def block_checksums(data: memoryview | bytes) -> NDArray[np.uint64]:
    """Returns the checksum of each block of data that starts at a block boundary."""
    view = memoryview(data)
    starts = range(0, len(view), BLOCK_BYTES)
    checksums = (xxhash.xxh3_64_intdigest(view[at : at + BLOCK_BYTES]) for at in starts)
    return np.fromiter(checksums, CHECKSUM, len(starts))


def checksum_bytes(size: int) -> int:
    """Returns the size in bytes of the `.sums` file of a `.bin` file of `size` bytes."""
    return -(-size // BLOCK_BYTES) * CHECKSUM.itemsize


def read_with_checksums(path: Path) -> Iterator[tuple[bytes, NDArray[np.uint64]]]:
    """Yields the content of a file in chunks, each with the checksums of its blocks."""
    with path.open("rb") as file:
        while data := file.read(256 * BLOCK_BYTES):
            yield data, block_checksums(data)


def sha256_of_file(path: Path) -> str:
    """Returns the sha256 of a file in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
