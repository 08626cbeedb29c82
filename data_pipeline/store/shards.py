"""Reads a `.bin`/`.idx` pair in Megatron-core's format, with memory maps and without Megatron-core.

`.bin` holds nothing but the token ids, and `data_pipeline.store.index_file` describes `.idx`.
Importing Megatron-core's reader takes seconds, and training does not need it.
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
from data_pipeline.store.checksums import BLOCK_BYTES, CHECKSUM, checksum_bytes
from data_pipeline.store.index_file import DTYPES, HEADER, MAGIC, index_bytes

Ints = NDArray[np.int64]
REPAIR = "Restore the file, or tokenize the corpus again."


class DamagedShard(InputError):
    """Raised when a shard differs from its manifest.

    Every rank prints this error, because ranks read different shards.
    """

    every_rank = True


class ShardIndex:
    """The `.idx` file of a shard, which tells where its documents start.

    The header and the file size are checked immediately, and the arrays are mapped on first use.

    Attributes:
        documents: Number of documents.
        tokens: Number of tokens.
        dtype: Type of the token ids.

    Raises:
        DamagedShard: The file is missing, truncated or not an index, or its type is not `dtype`.
    """

    def __init__(self, path: Path, dtype: str | None = None) -> None:
        self.path = path
        try:
            with path.open("rb", buffering=0) as file:
                self._read_header(file.fileno(), dtype)
        except FileNotFoundError:
            raise DamagedShard(f"{path} is missing. {REPAIR}") from None

    def _read_header(self, file: int, dtype: str | None) -> None:
        header, size = os.pread(file, HEADER.size, 0), os.fstat(file).st_size
        if len(header) < HEADER.size:
            raise DamagedShard(
                f"{self.path} has {size} bytes, but the header alone needs {HEADER.size}. {REPAIR}"
            )
        magic, version, code, self._sequences, boundaries = HEADER.unpack(header)
        if magic != MAGIC or version != 1:
            raise DamagedShard(f"{self.path} is not a Megatron index of version 1. {REPAIR}")
        if code not in DTYPES:
            raise DamagedShard(f"{self.path} has data of type code {code}, not token ids. {REPAIR}")
        self.dtype: np.dtype = np.dtype(DTYPES[code])
        if dtype is not None and self.dtype != np.dtype(dtype):
            raise DamagedShard(
                f"{self.path} has ids of type {self.dtype}, but the manifest has {dtype}. {REPAIR}"
            )
        expected = index_bytes(self._sequences, boundaries - 1)
        if size != expected:
            raise DamagedShard(
                f"{self.path} has {size} bytes, but its header requires {expected}. {REPAIR}"
            )
        self.documents = boundaries - 1
        self.tokens = 0
        if self._sequences:  # the end of the last sequence is the end of the tokens
            at = HEADER.size + 4 * (self._sequences - 1)
            (length,) = struct.unpack("<i", os.pread(file, 4, at))
            at = HEADER.size + 12 * self._sequences - 8
            (pointer,) = struct.unpack("<q", os.pread(file, 8, at))
            self.tokens = pointer // self.dtype.itemsize + length

    @cached_property
    def _starts(self) -> Ints:
        """Byte offset of the start of each document, (documents,) or longer."""
        raw = map_file(self.path)
        pointers_at = HEADER.size + 4 * self._sequences
        boundaries_at = pointers_at + 8 * self._sequences
        pointers = raw[pointers_at:boundaries_at].view(np.int64)
        # Usually each document is one sequence, and the boundaries need not be read.
        if self.documents == self._sequences:
            return pointers
        return pointers[raw[boundaries_at:].view(np.int64)[:-1]]

    def document_starts(self, start: int, end: int) -> Ints:
        """Returns the token offsets of the documents that start in [start, end)."""
        # The 34-byte header leaves the map unaligned, so np.searchsorted would copy all of it on
        # every call.
        width = self.dtype.itemsize
        low = bisect_left(self._starts, start * width)
        high = bisect_left(self._starts, end * width, low)
        return np.asarray(self._starts[low:high]) // width

    def document_of(self, offset: int) -> int:
        """Returns the number of the document that contains the token at `offset`."""
        return bisect_right(self._starts, offset * self.dtype.itemsize) - 1

    def document(self, number: int) -> tuple[int, int]:
        """Returns the token range [start, end) of a document."""
        width = self.dtype.itemsize
        last = number + 1 == self.documents
        end = self.tokens if last else int(self._starts[number + 1]) // width
        return int(self._starts[number]) // width, end


class Shard:
    """One shard, mapped into memory.

    Args:
        prefix: Path of the shard without suffix.
        dtype: Type of the token ids; None takes it from the index.
        entry: The shard's entry in the manifest; without it, the number of tokens is taken from the
            index.
        checked: One bit per block, set once the block's checksum has been verified. A caller that
            reopens a shard passes the old `checked`, so that a process verifies each block once.

    Raises:
        DamagedShard: A file is missing or truncated, or contradicts another one.
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
        self._expected_dtype = dtype
        self.dtype = np.dtype(dtype or self.index.dtype)
        self._has_checksums = bool(entry and entry.get("sums"))
        tokens = int(entry["tokens"]) if entry else self.index.tokens
        try:
            raw = map_file(self.bin)
        except FileNotFoundError:
            raise DamagedShard(f"{self.bin} is missing. {REPAIR}") from None
        if len(raw) != tokens * self.dtype.itemsize:
            raise DamagedShard(
                describe_wrong_size(self.bin, len(raw), tokens * self.dtype.itemsize)
            )
        self._raw = raw
        self._map = mapping_of(raw)
        self.tokens: NDArray[np.integer] = raw.view(self.dtype)
        if entry and checked is None:
            self._check_index(tokens, int(entry["documents"]))
        self.checked = bytearray(len(raw) // BLOCK_BYTES // 8 + 1) if checked is None else checked

    @cached_property
    def index(self) -> ShardIndex:
        """The index of the shard, which is opened on first use. Reading tokens does not need it."""
        return ShardIndex(self.idx, self._expected_dtype)

    def document_starts(self, start: int, end: int) -> Ints:
        """Returns the token offsets of the documents that start in [start, end)."""
        return self.index.document_starts(start, end)

    def read(self, offset: int, out: NDArray[np.integer]) -> None:
        """Fills `out` with the tokens from `offset` on.

        Raises:
            DamagedShard: A block differs from its checksum, or the file has shrunk. (Reading a page
                after the end of a mapped file would end the process with SIGBUS.)
        """
        if self._map is not None and (size := self._map.size()) != len(self._raw):
            raise DamagedShard(describe_wrong_size(self.bin, size, len(self._raw)))
        if self._has_checksums:
            width = self.dtype.itemsize
            checked = self.checked
            first, last = offset * width, (offset + len(out)) * width - 1
            for block in range(first // BLOCK_BYTES, last // BLOCK_BYTES + 1):
                if not checked[block >> 3] >> (block & 7) & 1:
                    self._check_block(block)
        out[:] = self.tokens[offset : offset + len(out)]

    def read_mask(self, offset: int, out: NDArray[np.uint8]) -> None:
        """Fills `out` with 1 for each token that is not trained on, else 0."""
        out[:] = self._mask[offset : offset + len(out)]

    @cached_property
    def _mask(self) -> NDArray[np.uint8]:
        path = self.prefix.with_name(self.prefix.name + ".mask")
        mask = _map_required(path)
        if len(mask) != len(self.tokens):
            raise DamagedShard(describe_wrong_size(path, len(mask), len(self.tokens)))
        return mask

    @cached_property
    def _checksums(self) -> NDArray[np.uint64]:
        path = self.prefix.with_name(self.prefix.name + ".sums")
        raw = _map_required(path)
        expected = checksum_bytes(len(self._raw))
        if len(raw) != expected:
            raise DamagedShard(describe_wrong_size(path, len(raw), expected))
        return np.array(raw.view(CHECKSUM))

    def _check_block(self, block: int) -> None:
        data = self._raw[block * BLOCK_BYTES : (block + 1) * BLOCK_BYTES]
        if xxhash.xxh3_64_intdigest(data.data) != self._checksums[block]:
            raise DamagedShard(
                describe_wrong_checksum(self.bin, block, len(data), self.dtype.itemsize)
            )
        self.checked[block >> 3] |= 1 << (block & 7)

    def _check_index(self, tokens: int, documents: int) -> None:
        """Raises DamagedShard if the counts of the index are not those of the manifest."""
        found = self.index.documents, self.index.tokens
        if found != (documents, tokens):
            raise DamagedShard(
                f"{self.idx} has {found[0]} documents and {found[1]} tokens, but the manifest has "
                f"{documents} and {tokens}. The index belongs to another shard. {REPAIR}"
            )


def describe_wrong_size(path: Path | str, found: int, expected: int) -> str:
    """Returns the error message for a file of the wrong size."""
    return (
        f"{path} has {found} bytes instead of {expected}. The file is truncated or belongs to "
        f"another shard. {REPAIR}"
    )


def describe_wrong_checksum(path: Path | str, block: int, size: int, width: int) -> str:
    """Returns the error message for a block of `size` bytes that differs from its checksum."""
    first = block * BLOCK_BYTES // width
    return f"{path}: checksum mismatch in tokens {first} to {first + size // width - 1}. {REPAIR}"


def map_file(path: Path) -> NDArray[np.uint8]:
    """Maps a file into memory and returns its bytes, (size,).

    Raises FileNotFoundError if the file does not exist.
    """
    with path.open("rb", buffering=0) as file:
        if not os.fstat(file.fileno()).st_size:  # an empty file cannot be mapped
            return np.empty(0, np.uint8)
        # A plain array is used, because slicing an np.memmap takes twice as long.
        return np.frombuffer(mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ), np.uint8)


def mapping_of(raw: NDArray[np.uint8]) -> mmap.mmap | None:
    """Returns the mapping behind the bytes of `map_file`; None for an empty file."""
    base = getattr(raw.base, "obj", raw.base)  # NumPy 2.4 keeps a memoryview of it
    return base if isinstance(base, mmap.mmap) else None


def _map_required(path: Path) -> NDArray[np.uint8]:
    try:
        return map_file(path)
    except FileNotFoundError:
        raise DamagedShard(f"{path} is missing. {REPAIR}") from None
