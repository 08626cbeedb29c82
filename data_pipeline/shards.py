"""Reads Megatron-core's `.bin`/`.idx` pairs by memory map, without importing Megatron.

`.idx`: 34 bytes of header (magic, version, dtype, counts), then int32 lengths, int64 byte offsets
of all sequences, and int64 document borders in sequences. `.bin`: the token ids alone. Importing
Megatron's own reader takes seconds that no training step needs; the writer is Megatron's.
"""

from __future__ import annotations

import struct
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from conf.errors import InputError

Ints = NDArray[np.int64]
MAGIC = b"MMIDIDX\x00\x00"
HEADER = struct.Struct("<9sQBQQ")
CHECK_TOKENS = 1 << 20
DTYPES = {1: np.uint8, 2: np.int8, 3: np.int16, 4: np.int32, 5: np.int64, 8: np.uint16}


class Shard:
    """One `.bin`/`.idx` pair; `prefix` is their path without the ending.

    Raises InputError where a file is missing, cut off, or not what the other one says.
    """

    def __init__(self, prefix: Path, dtype: str | None = None) -> None:
        self.bin = prefix.with_name(prefix.name + ".bin")
        self.idx = prefix.with_name(prefix.name + ".idx")
        for path in (self.bin, self.idx):
            if not path.is_file():
                raise InputError(f"{path} is missing: tokenize the corpus again.")
        if not self.idx.stat().st_size:  # nothing can be mapped
            raise InputError(f"{self.idx} has 0 bytes, its header alone has {HEADER.size}.")
        raw = np.memmap(self.idx, np.uint8, mode="r")
        sequences, documents = self._check_header(raw, dtype)
        lengths_at = HEADER.size
        pointers_at = lengths_at + 4 * sequences
        documents_at = pointers_at + 8 * sequences
        self._check_size(self.idx, documents_at + 8 * documents)
        lengths = raw[lengths_at:pointers_at].view(np.int32)
        pointers = raw[pointers_at:documents_at].view(np.int64)
        size = int(pointers[-1]) + int(lengths[-1]) * self.dtype.itemsize if sequences else 0
        self._check_size(self.bin, size)
        borders = raw[documents_at:].view(np.int64)
        # One sequence a document is the rule: then no array of borders is made.
        one_each = documents == sequences + 1
        self._starts = pointers if one_each else pointers[borders[:-1]]
        self.documents = documents - 1
        self.tokens: NDArray[np.integer] = (
            np.memmap(self.bin, self.dtype, mode="r") if size else np.empty(0, self.dtype)
        )

    def document_starts(self, start: int, end: int) -> Ints:
        """Token offsets of the documents that begin in [start, end)."""
        # np.searchsorted would copy the whole map at every call: the header leaves it unaligned.
        width = self.dtype.itemsize
        low = bisect_left(self._starts, start * width)
        high = bisect_left(self._starts, end * width, low)
        return np.asarray(self._starts[low:high]) // width

    def document_of(self, offset: int) -> int:
        """Number of the document that holds the token at offset."""
        return bisect_right(self._starts, offset * self.dtype.itemsize) - 1

    def _check_header(self, raw: NDArray[np.uint8], dtype: str | None) -> tuple[int, int]:
        if len(raw) < HEADER.size:
            raise InputError(
                f"{self.idx} has {len(raw)} bytes, its header alone has {HEADER.size}."
            )
        magic, version, code, sequences, documents = HEADER.unpack(raw[: HEADER.size].tobytes())
        if magic != MAGIC or version != 1:
            raise InputError(f"{self.idx} is not a Megatron index of version 1.")
        if code not in DTYPES:
            raise InputError(f"{self.idx} holds numbers of type code {code}, expected token ids.")
        self.dtype: np.dtype = np.dtype(DTYPES[code])
        if dtype is not None and self.dtype != np.dtype(dtype):
            raise InputError(f"{self.idx} holds {self.dtype}, the manifest says {dtype}.")
        return sequences, documents

    @staticmethod
    def _check_size(path: Path, expected: int) -> None:
        found = path.stat().st_size
        if found != expected:
            raise InputError(
                f"{path} has {found} bytes, its index says {expected}: it is cut off or of "
                "another file; tokenize the corpus again."
            )


class TokenStream:
    """The shards of a source, one after the other, as one stream of tokens."""

    def __init__(self, shards: Sequence[Shard], vocab_size: int) -> None:
        self.shards = list(shards)
        self.vocab_size = vocab_size
        self._ends = np.cumsum([len(shard.tokens) for shard in shards])

    def __len__(self) -> int:
        """Tokens of the stream."""
        return int(self._ends[-1]) if len(self._ends) else 0

    def locate(self, offset: int) -> tuple[Shard, int]:
        """The shard that holds the token at offset, and where in it."""
        number = int(np.searchsorted(self._ends, offset, side="right"))
        shard = self.shards[number]
        return shard, offset - (int(self._ends[number]) - len(shard.tokens))

    def read(self, start: int, tokens: Ints) -> Ints:
        """Fills `tokens` from the stream at start; returns where in it documents begin.

        Raises InputError naming shard and offset where an id is beyond the vocabulary.
        """
        borders = []
        filled = 0
        while filled < len(tokens):
            shard, offset = self.locate(start + filled)
            part = shard.tokens[offset : offset + len(tokens) - filled]
            tokens[filled : filled + len(part)] = part
            borders.append(shard.document_starts(offset, offset + len(part)) + (filled - offset))
            filled += len(part)
        if int(tokens.max()) >= self.vocab_size or int(tokens.min()) < 0:
            self._refuse(start, tokens)
        return np.concatenate(borders)

    def check_ids(self, most_tokens: int) -> None:
        """Reads up to most_tokens tokens from the start; raises InputError as `read` does."""
        for start in range(0, min(most_tokens, len(self)), CHECK_TOKENS):
            self.read(start, np.empty(min(CHECK_TOKENS, len(self) - start), np.int64))

    def _refuse(self, start: int, tokens: Ints) -> None:
        place = int(np.flatnonzero((tokens >= self.vocab_size) | (tokens < 0))[0])
        shard, offset = self.locate(start + place)
        raise InputError(
            f"{shard.bin} holds token id {int(tokens[place])} at token {offset}, beyond the "
            f"vocabulary of {self.vocab_size}: the file is damaged or of another tokenizer."
        )
