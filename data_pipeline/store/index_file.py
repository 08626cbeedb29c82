"""The format of Megatron-core's `.idx`: 34 bytes of header (magic, version, type, counts), then
int32 lengths and int64 byte offsets of all sequences, and int64 borders of documents in sequences.

Written here because the import of Megatron-core takes longer than the tokenizing of a hundred
megabytes; tests hold every byte against its own writer, and `verify` opens shards with its reader.
"""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

MAGIC = b"MMIDIDX\x00\x00"
HEADER = struct.Struct("<9sQBQQ")
DTYPES = {1: np.uint8, 2: np.int8, 3: np.int16, 4: np.int32, 5: np.int64, 8: np.uint16}
"""Types of token ids by their code."""


def index_bytes(sequences: int, documents: int) -> int:
    """Size of an `.idx`."""
    return HEADER.size + 12 * sequences + 8 * (documents + 1)


def write_index(
    path: Path,
    dtype: DTypeLike,
    lengths: ArrayLike,
    pointers: ArrayLike | None = None,
    borders: ArrayLike | None = None,
) -> None:
    """Writes an index of sequences of `lengths` tokens of `dtype`.

    pointers: (sequences,) byte offsets, where they do not lie end to end; borders: (documents + 1,)
        sequences that documents begin with, where a document is not a sequence.
    """
    kind = np.dtype(dtype)
    code = next(code for code, known in DTYPES.items() if known == kind)
    lengths = np.asarray(lengths, "<i4")
    if pointers is None:
        pointers = (np.cumsum(lengths, dtype=np.int64) - lengths) * kind.itemsize
    if borders is None:
        borders = np.arange(len(lengths) + 1)
    borders = np.asarray(borders, "<i8")
    with path.open("wb") as file:
        file.write(HEADER.pack(MAGIC, 1, code, len(lengths), len(borders)))
        for numbers in (lengths, np.asarray(pointers, "<i8"), borders):
            file.write(numbers.tobytes())
