"""Reads the files of a shard completely and lists everything that is wrong in them.

`verify` compares the result with the manifest, and `import` makes a manifest from it. While
`shards` refuses a file at its first flaw, this module finds and locates all of them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_pipeline.store.checksums import BLOCK_BYTES, read_with_checksums
from data_pipeline.store.index_file import DTYPES, HEADER, MAGIC, write_index
from data_pipeline.store.shards import Ints

FLOAT_CODES = (6, 7)
"""Type codes of float64 and float32, in this order in Megatron-core and reversed in GPT-NeoX.

Token ids never have these types."""
CHUNK_SEQUENCES = 1 << 22
"""Number of sequences of an index that are compared at a time."""


@dataclass(frozen=True)
class Flaw:
    """A flaw in a file.

    Attributes:
        place: Position in the file, such as `token 7`; empty if the flaw concerns the whole file.
        text: Description of the flaw.
    """

    place: str
    text: str

    def __str__(self) -> str:
        return f"{self.place}: {self.text}" if self.place else self.text


class BadIndex(Exception):
    """Raised when an index cannot be read, because of `flaw`."""

    def __init__(self, place: str, text: str) -> None:
        super().__init__(text)
        self.flaw = Flaw(place, text)


@dataclass(frozen=True)
class IndexArrays:
    """The memory-mapped arrays of an `.idx` file, of which only the sizes have been checked.

    Attributes:
        dtype: Type of the token ids.
        lengths: (sequences,) tokens per sequence.
        pointers: (sequences,) byte offsets in `.bin`.
        boundaries: (documents + 1,) number of the first sequence of each document, followed by the
            number of sequences.
    """

    dtype: np.dtype
    lengths: NDArray[np.int32]
    pointers: Ints
    boundaries: Ints

    @property
    def documents(self) -> int:
        """Number of documents, including empty ones."""
        return max(0, len(self.boundaries) - 1)

    @property
    def tokens(self) -> int:
        """Number of tokens in all sequences."""
        return int(self.lengths.sum(dtype=np.int64))

    def document_lengths(self) -> Ints:
        """Returns the number of tokens per document, (documents,)."""
        if len(self.boundaries) == len(self.lengths) + 1 and (np.diff(self.boundaries) == 1).all():
            return self.lengths.astype(np.int64)
        ends = np.concatenate(([0], np.cumsum(self.lengths, dtype=np.int64)))
        return np.diff(ends[np.clip(self.boundaries, 0, len(self.lengths))])


def read_index(path: Path) -> IndexArrays:
    """Maps an index into memory. Raises BadIndex if its header or its size is wrong."""
    size = path.stat().st_size
    if size < HEADER.size:
        raise BadIndex("", f"has {size} bytes, but the header alone needs {HEADER.size}")
    raw = np.memmap(path, np.uint8, mode="r")
    magic, version, code, sequences, boundaries = HEADER.unpack(raw[: HEADER.size].tobytes())
    if magic != MAGIC or version != 1:
        raise BadIndex("byte 0", "is not a Megatron index of version 1")
    if code in FLOAT_CODES:
        raise BadIndex("byte 17", f"has floating-point data (type code {code}), not token ids")
    if code not in DTYPES:
        raise BadIndex("byte 17", f"has data of the unknown type code {code}")
    pointers_at = HEADER.size + 4 * sequences
    boundaries_at = pointers_at + 8 * sequences
    end = boundaries_at + 8 * boundaries
    if size != end:
        hint = " (perhaps a multimodal index)" if size == end + sequences else ""
        raise BadIndex(
            "",
            f"has {size} bytes, but the header requires {end} for {sequences} sequences and "
            f"{boundaries} document boundaries{hint}",
        )
    return IndexArrays(
        np.dtype(DTYPES[code]),
        raw[HEADER.size : pointers_at].view(np.int32),
        raw[pointers_at:boundaries_at].view(np.int64),
        raw[boundaries_at:].view(np.int64),
    )


def write_index_without_empty(index: IndexArrays, path: Path) -> None:
    """Writes a copy of an index that leaves out empty sequences and documents.

    Other programs write empty sequences for empty texts.
    """
    kept = np.asarray(index.lengths) > 0
    before = np.concatenate(([0], np.cumsum(kept)))
    boundaries = np.unique(before[index.boundaries])
    write_index(path, index.dtype, index.lengths[kept], index.pointers[kept], boundaries)


def index_flaws(index: IndexArrays) -> Iterator[Flaw]:
    """Yields a flaw for each sequence or document boundary that contradicts the one before it.

    A pointer after a wrong one is compared with the wrong one, so that each mistake is listed only
    once.
    """
    end = 0
    for first in range(0, len(index.lengths), CHUNK_SEQUENCES):
        lengths = index.lengths[first : first + CHUNK_SEQUENCES].astype(np.int64)
        pointers = np.asarray(index.pointers[first : first + CHUNK_SEQUENCES])
        for number in np.flatnonzero(lengths < 0):
            yield Flaw(f"sequence {first + number}", f"has the length {lengths[number]}")
        ends = pointers + lengths * index.dtype.itemsize
        expected = np.concatenate(([end], ends[:-1]))
        for number in np.flatnonzero(pointers != expected):
            yield Flaw(
                f"sequence {first + number}",
                f"starts at byte {pointers[number]} of .bin, but the previous one ends at byte "
                f"{expected[number]}",
            )
        end = int(ends[-1])
    boundaries = np.asarray(index.boundaries)
    if not len(boundaries):
        yield Flaw("", "has no document boundaries")
        return
    if boundaries[0] != 0:
        yield Flaw("document 0", f"starts at sequence {boundaries[0]} instead of 0")
    for number in np.flatnonzero(np.diff(boundaries) < 0):
        yield Flaw(
            f"document {number + 1}",
            f"starts at sequence {boundaries[number + 1]}, before the start of the previous one",
        )
    if boundaries[-1] != len(index.lengths):
        yield Flaw(
            f"document {len(boundaries) - 1}",
            f"is the last document, but ends at sequence {boundaries[-1]} of {len(index.lengths)}",
        )


@dataclass
class Occurrences:
    """Number of occurrences of a flaw, with the positions of the first `limit` of them.

    Attributes:
        limit: Maximum number of occurrences to keep.
        count: Number of occurrences found.
        first: The kept occurrences, each as (offset in tokens, id).
    """

    limit: int
    count: int = 0
    first: list[tuple[int, int]] = field(default_factory=list)

    def add(self, offsets: Ints, ids: NDArray[Any]) -> None:
        """Adds occurrences in the order of their offsets."""
        self.count += len(offsets)
        room = self.limit - len(self.first)
        self.first += zip(offsets[:room].tolist(), ids[:room].tolist(), strict=True)


@dataclass
class Scan:
    """Result of reading a whole `.bin` file.

    Attributes:
        sha256: The sha256 of the file.
        checksums: One checksum per block.
        tokens: Number of complete tokens.
        text_bytes: Number of UTF-8 bytes of the text that the tokens encode.
        outside_vocabulary: Ids outside the vocabulary.
        no_eos: Last tokens of the documents that do not end in EOS.
        eos_inside: EOS tokens that are not the last token of a document.
    """

    sha256: str
    checksums: NDArray[np.uint64]
    tokens: int
    text_bytes: int
    outside_vocabulary: Occurrences
    no_eos: Occurrences
    eos_inside: Occurrences


def scan_tokens(
    path: Path,
    dtype: np.dtype,
    vocab_size: int,
    eos_id: int,
    document_lengths: Ints,
    token_bytes: NDArray[np.uint16] | None = None,
    limit: int = 1,
) -> Scan:
    """Reads a `.bin` file once, in chunks of 16 MiB.

    Args:
        path: The file.
        dtype: Type of the token ids.
        vocab_size: Number of valid ids.
        eos_id: Id of EOS.
        document_lengths: (documents,) tokens per document, from the index.
        token_bytes: (vocab_size,) number of bytes per id, from which `Scan.text_bytes` is computed;
            None leaves it 0.
        limit: Maximum number of occurrences to keep of each flaw.
    """
    digest = hashlib.sha256()
    checksums = []
    outside, no_eos, eos_inside = Occurrences(limit), Occurrences(limit), Occurrences(limit)
    ends = np.cumsum(document_lengths)[document_lengths > 0] - 1
    start = text_bytes = 0
    for data, block_checksums in read_with_checksums(path):
        digest.update(data)
        checksums.append(block_checksums)
        tokens = np.frombuffer(data, dtype, len(data) // dtype.itemsize)
        if not len(tokens):
            break  # the file ends in the middle of a token
        if int(tokens.max()) >= vocab_size or int(tokens.min()) < 0:
            wrong = np.flatnonzero((tokens >= vocab_size) | (tokens < 0))
            outside.add(start + wrong, tokens[wrong])
        if token_bytes is not None:
            text_bytes += int(token_bytes.take(tokens, mode="clip").sum(dtype=np.int64))
        low, high = np.searchsorted(ends, (start, start + len(tokens)))
        expected = ends[low:high] - start
        found = np.flatnonzero(tokens == eos_id)
        missing = np.setdiff1d(expected, found, assume_unique=True)
        no_eos.add(start + missing, tokens[missing])
        inside = np.setdiff1d(found, expected, assume_unique=True)
        eos_inside.add(start + inside, tokens[inside])
        start += len(tokens)
    whole = np.concatenate(checksums) if checksums else np.empty(0, np.uint64)
    return Scan(digest.hexdigest(), whole, start, text_bytes, outside, no_eos, eos_inside)


def checksum_flaws(found: NDArray[np.uint64], expected: NDArray[np.uint64]) -> list[Flaw]:
    """Returns one flaw per run of blocks whose checksums differ, with its byte range in `.bin`."""
    shared = min(len(found), len(expected))
    wrong = np.flatnonzero(found[:shared] != expected[:shared])
    runs = np.split(wrong, np.flatnonzero(np.diff(wrong) > 1) + 1) if len(wrong) else []
    return [
        Flaw(
            f"bytes {run[0] * BLOCK_BYTES} to {(run[-1] + 1) * BLOCK_BYTES}",
            "checksum mismatch",
        )
        for run in runs
    ]
