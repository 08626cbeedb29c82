"""Reads one pair of Megatron-core's `.bin`/`.idx` by memory map, without importing Megatron.

`.bin` holds the token ids alone, `.idx` is described in `data_pipeline.store.index_file`. Importing
Megatron's own reader takes seconds that no training step needs.
"""

from __future__ import annotations

import mmap
import os
import struct
from bisect import bisect_left, bisect_right
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from conf.errors import InputError
from data_pipeline.store.index_file import DTYPES, HEADER, MAGIC, index_bytes
from data_pipeline.store.sums import BLOCK_BYTES, SUM

Ints = NDArray[np.int64]
AGAIN = "restore it, or tokenize the corpus again."


class DamagedShard(InputError):
    """A shard is not what the manifest says. Each rank reads tokens of its own: it says so."""

    every_rank = True


class Index:
    """A `.idx` file: where documents begin. Its header and size are read when it is made, the rest
    is mapped when it is asked for.

    tokens, documents: how many there are. Raises DamagedShard where the file is missing, cut off,
    of another type than `dtype`, or no index.
    """

    def __init__(self, path: Path, dtype: str | None = None) -> None:
        self.path = path
        try:
            with path.open("rb", buffering=0) as file:
                self._read_header(file.fileno(), dtype)
        except FileNotFoundError:
            raise DamagedShard(f"{path} is missing: {AGAIN}") from None

    def _read_header(self, file: int, dtype: str | None) -> None:
        header, size = os.pread(file, HEADER.size, 0), os.fstat(file).st_size
        if len(header) < HEADER.size:
            raise DamagedShard(
                f"{self.path} has {size} bytes, its header alone has {HEADER.size}: {AGAIN}"
            )
        magic, version, code, self._sequences, borders = HEADER.unpack(header)
        if magic != MAGIC or version != 1:
            raise DamagedShard(f"{self.path} is not a Megatron index of version 1: {AGAIN}")
        if code not in DTYPES:
            raise DamagedShard(
                f"{self.path} holds numbers of type code {code}, expected token ids: {AGAIN}"
            )
        self.dtype: np.dtype = np.dtype(DTYPES[code])
        if dtype is not None and self.dtype != np.dtype(dtype):
            raise DamagedShard(
                f"{self.path} holds {self.dtype}, the manifest says {dtype}: {AGAIN}"
            )
        expected = index_bytes(self._sequences, borders - 1)
        if size != expected:
            raise DamagedShard(
                f"{self.path} has {size} bytes, its header says {expected}: it is cut off; {AGAIN}"
            )
        self.documents = borders - 1
        self.tokens = 0
        if self._sequences:  # the last sequence ends where the tokens do
            at = HEADER.size + 4 * (self._sequences - 1)
            (length,) = struct.unpack("<i", os.pread(file, 4, at))
            at = HEADER.size + 12 * self._sequences - 8
            (pointer,) = struct.unpack("<q", os.pread(file, 8, at))
            self.tokens = pointer // self.dtype.itemsize + length

    @cached_property
    def _starts(self) -> Ints:
        """Byte offsets of documents, (documents,) or longer."""
        raw = map_file(self.path)
        pointers_at = HEADER.size + 4 * self._sequences
        borders_at = pointers_at + 8 * self._sequences
        pointers = raw[pointers_at:borders_at].view(np.int64)
        # One sequence a document is the rule: then no array of borders is made.
        if self.documents == self._sequences:
            return pointers
        return pointers[raw[borders_at:].view(np.int64)[:-1]]

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

    def document(self, number: int) -> tuple[int, int]:
        """Tokens [start, end) of a document."""
        width = self.dtype.itemsize
        last = number + 1 == self.documents
        end = self.tokens if last else int(self._starts[number + 1]) // width
        return int(self._starts[number]) // width, end


class Shard:
    """One shard; `prefix` is its path without an ending.

    entry: what the manifest says of it; without one, the index is the measure.
    checked: a bit for each block whose checksum was compared, kept by the caller so that a block
        is checked once; None where the shard was never open in this process.

    Raises DamagedShard where a file is missing, cut off, or not what another one says.
    """

    def __init__(
        self,
        prefix: Path,
        dtype: str | None = None,
        entry: Mapping[str, Any] | None = None,
        checked: bytearray | None = None,
    ) -> None:
        self.prefix = prefix
        self.bin = prefix.with_name(prefix.name + ".bin")
        self.idx = prefix.with_name(prefix.name + ".idx")
        self._expected = dtype
        self.dtype = np.dtype(dtype or self.index.dtype)
        self._has_sums = bool(entry and entry.get("sums"))
        tokens = int(entry["tokens"]) if entry else self.index.tokens
        try:
            raw = map_file(self.bin)
        except FileNotFoundError:
            raise DamagedShard(f"{self.bin} is missing: {AGAIN}") from None
        if len(raw) != tokens * self.dtype.itemsize:
            raise DamagedShard(wrong_size(self.bin, len(raw), tokens * self.dtype.itemsize))
        self._raw = raw
        self._map = raw.base if isinstance(raw.base, mmap.mmap) else None
        self.tokens: NDArray[np.integer] = raw.view(self.dtype)
        if entry and checked is None:
            self._check_index(tokens, int(entry["documents"]))
        self.checked = bytearray(len(raw) // BLOCK_BYTES // 8 + 1) if checked is None else checked

    @cached_property
    def index(self) -> Index:
        """The `.idx`; not needed to read tokens."""
        return Index(self.idx, self._expected)

    @property
    def documents(self) -> int:
        """How many there are."""
        return self.index.documents

    def document_starts(self, start: int, end: int) -> Ints:
        """Token offsets of the documents that begin in [start, end)."""
        return self.index.document_starts(start, end)

    def document_of(self, offset: int) -> int:
        """Number of the document that holds the token at offset."""
        return self.index.document_of(offset)

    def read(self, offset: int, out: NDArray[np.integer]) -> None:
        """Fills `out` with the tokens from offset on.

        Raises DamagedShard where a block that they lie in is not what its checksum says, or the
        file has shrunk: to touch what is no longer there would end the process with SIGBUS.
        """
        if self._map is not None and (size := self._map.size()) != len(self._raw):
            raise DamagedShard(wrong_size(self.bin, size, len(self._raw)))
        if self._has_sums:
            width = self.dtype.itemsize
            checked = self.checked
            first, last = offset * width, (offset + len(out)) * width - 1
            for block in range(first // BLOCK_BYTES, last // BLOCK_BYTES + 1):
                if not checked[block >> 3] >> (block & 7) & 1:
                    self._check_block(block)
        out[:] = self.tokens[offset : offset + len(out)]

    def read_mask(self, offset: int, out: NDArray[np.uint8]) -> None:
        """Fills `out` with 1 for the tokens that are not trained on."""
        out[:] = self._mask[offset : offset + len(out)]

    @cached_property
    def _mask(self) -> NDArray[np.uint8]:
        path = self.prefix.with_name(self.prefix.name + ".mask")
        mask = _open(path)
        if len(mask) != len(self.tokens):
            raise DamagedShard(wrong_size(path, len(mask), len(self.tokens)))
        return mask

    @cached_property
    def _sums(self) -> NDArray[np.uint64]:
        path = self.prefix.with_name(self.prefix.name + ".sums")
        sums = _open(path)
        expected = sums_bytes(len(self._raw))
        if len(sums) != expected:
            raise DamagedShard(wrong_size(path, len(sums), expected))
        return np.array(sums.view(SUM))

    def _check_block(self, block: int) -> None:
        data = self._raw[block * BLOCK_BYTES : (block + 1) * BLOCK_BYTES]
        if xxhash.xxh3_64_intdigest(data.data) != self._sums[block]:
            raise DamagedShard(wrong_block(self.bin, block, len(data), self.dtype.itemsize))
        self.checked[block >> 3] |= 1 << (block & 7)

    def _check_index(self, tokens: int, documents: int) -> None:
        """Raises DamagedShard where the index is of another shard: a few numbers of it are read."""
        found = self.index.documents, self.index.tokens
        if found != (documents, tokens):
            raise DamagedShard(
                f"{self.idx} is the index of {found[0]} documents and {found[1]} tokens, the "
                f"manifest says {documents} and {tokens}: it is of another shard; {AGAIN}"
            )


def sums_bytes(size: int) -> int:
    """Size of the `.sums` of a `.bin` of that size."""
    return -(-size // BLOCK_BYTES) * SUM.itemsize


def wrong_size(path: Path | str, found: int, expected: int) -> str:
    """The sentence on a file of another size than expected."""
    return (
        f"{path} has {found} bytes, expected {expected}: it is cut off or of another shard; {AGAIN}"
    )


def wrong_block(path: Path | str, block: int, size: int, width: int) -> str:
    """The sentence on a block that is not what its checksum says."""
    first = block * BLOCK_BYTES // width
    return (
        f"{path} is not what it was when it was written: tokens {first} to "
        f"{first + size // width - 1} do not have their checksum; {AGAIN}"
    )


def map_file(path: Path) -> NDArray[np.uint8]:
    """The bytes of a file, mapped; raises FileNotFoundError."""
    with path.open("rb", buffering=0) as file:
        if not os.fstat(file.fileno()).st_size:  # nothing can be mapped
            return np.empty(0, np.uint8)
        # A plain array over the map: slices of np.memmap cost twice as much.
        return np.frombuffer(mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ), np.uint8)


def _open(path: Path) -> NDArray[np.uint8]:
    try:
        return map_file(path)
    except FileNotFoundError:
        raise DamagedShard(f"{path} is missing: {AGAIN}") from None
