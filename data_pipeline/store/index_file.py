"""Writes `.idx` files in Megatron-core's format.

A header of 34 bytes (magic, version, type code, counts) is followed by the int32 lengths and the
int64 byte offsets of all sequences, and by the int64 document boundaries, counted in sequences.

Megatron-core's own writer is not used, because importing it takes longer than tokenizing a hundred
megabytes. Tests compare every byte with that writer, and `verify` opens shards with its reader.
"""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

MAGIC = b"MMIDIDX\x00\x00"
HEADER = struct.Struct("<9sQBQQ")
DTYPES = {1: np.uint8, 2: np.int8, 3: np.int16, 4: np.int32, 5: np.int64, 8: np.uint16}
"""Types of token ids by type code."""


def index_bytes(sequences: int, documents: int) -> int:
    """Returns the size of an `.idx` file."""
    return HEADER.size + 12 * sequences + 8 * (documents + 1)


def write_index(
    path: Path,
    dtype: DTypeLike,
    lengths: ArrayLike,
    pointers: ArrayLike | None = None,
    boundaries: ArrayLike | None = None,
) -> None:
    """Writes the index of a shard.

    Args:
        path: The `.idx` file.
        dtype: Type of the token ids.
        lengths: (sequences,) tokens per sequence.
        pointers: (sequences,) byte offsets; by default the sequences are contiguous.
        boundaries: (documents + 1,) number of the first sequence of each document, followed by the
            number of sequences; by default each sequence is a document.
    """
    token = np.dtype(dtype)
    code = next(code for code, known in DTYPES.items() if known == token)
    lengths = np.asarray(lengths, "<i4")
    if pointers is None:
        pointers = (np.cumsum(lengths, dtype=np.int64) - lengths) * token.itemsize
    if boundaries is None:
        boundaries = np.arange(len(lengths) + 1)
    boundaries = np.asarray(boundaries, "<i8")
    with path.open("wb") as file:
        file.write(HEADER.pack(MAGIC, 1, code, len(lengths), len(boundaries)))
        for numbers in (lengths, np.asarray(pointers, "<i8"), boundaries):
            file.write(numbers.tobytes())
