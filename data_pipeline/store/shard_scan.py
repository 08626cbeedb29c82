"""The files of a shard read whole, and all that is wrong inside them.

`verify` compares what is found to the manifest, `import` writes a manifest of it. Unlike
`shards`, which refuses at the first flaw, this goes on and says where each one is.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_pipeline.store.index_file import DTYPES, HEADER, MAGIC, write_index
from data_pipeline.store.sums import BLOCK_BYTES, file_sums

Ints = NDArray[np.int64]
FLOATS = (6, 7)
"""float64 and float32 in Megatron-core, the other way round in GPT-NeoX; never token ids."""
SEQUENCES = 1 << 22
"""Of an index looked at in one go."""


@dataclass(frozen=True)
class Flaw:
    """What is wrong in a file; `place` says where in it, '' where it is the file as a whole."""

    place: str
    text: str

    def __str__(self) -> str:
        return f"{self.place}: {self.text}" if self.place else self.text


class BadIndex(Exception):
    """An index that cannot be read; its `flaw` says why."""

    def __init__(self, place: str, text: str) -> None:
        super().__init__(text)
        self.flaw = Flaw(place, text)


@dataclass(frozen=True)
class Index:
    """An `.idx`, mapped, not checked beyond its sizes.

    lengths: (sequences,) tokens; pointers: (sequences,) byte offsets into `.bin`; borders:
    (documents + 1,) numbers of the sequences that documents begin with.
    """

    dtype: np.dtype
    lengths: NDArray[np.int32]
    pointers: Ints
    borders: Ints

    @property
    def documents(self) -> int:
        """Documents, empty ones included."""
        return max(0, len(self.borders) - 1)

    @property
    def tokens(self) -> int:
        """Tokens of all sequences."""
        return int(self.lengths.sum(dtype=np.int64))

    def document_lengths(self) -> Ints:
        """Tokens of each document, (documents,)."""
        if len(self.borders) == len(self.lengths) + 1 and (np.diff(self.borders) == 1).all():
            return self.lengths.astype(np.int64)
        ends = np.concatenate(([0], np.cumsum(self.lengths, dtype=np.int64)))
        return np.diff(ends[np.clip(self.borders, 0, len(self.lengths))])


def read_index(path: Path) -> Index:
    """Maps an index; raises BadIndex where its header or its size is wrong."""
    size = path.stat().st_size
    if size < HEADER.size:
        raise BadIndex("", f"has {size} bytes, its header alone has {HEADER.size}")
    raw = np.memmap(path, np.uint8, mode="r")
    magic, version, code, sequences, borders = HEADER.unpack(raw[: HEADER.size].tobytes())
    if magic != MAGIC or version != 1:
        raise BadIndex("byte 0", "is not a Megatron index of version 1")
    if code in FLOATS:
        raise BadIndex("byte 17", f"holds floating-point numbers (type code {code}), no token ids")
    if code not in DTYPES:
        raise BadIndex("byte 17", f"holds numbers of the unknown type code {code}")
    pointers_at = HEADER.size + 4 * sequences
    borders_at = pointers_at + 8 * sequences
    end = borders_at + 8 * borders
    if size != end:
        more = " (a modality for each sequence?)" if size == end + sequences else ""
        raise BadIndex(
            "",
            f"has {size} bytes, its header says {end} for {sequences} sequences and {borders} "
            f"borders of documents{more}",
        )
    return Index(
        np.dtype(DTYPES[code]),
        raw[HEADER.size : pointers_at].view(np.int32),
        raw[pointers_at:borders_at].view(np.int64),
        raw[borders_at:].view(np.int64),
    )


def write_index_without_empty(index: Index, path: Path) -> None:
    """Writes an index of the same tokens without empty sequences and documents: others write them
    for empty texts, and a reader of documents has no use for them."""
    kept = np.asarray(index.lengths) > 0
    before = np.concatenate(([0], np.cumsum(kept)))
    borders = np.unique(before[index.borders])
    write_index(path, index.dtype, index.lengths[kept], index.pointers[kept], borders)


def index_flaws(index: Index) -> Iterator[Flaw]:
    """Every sequence whose length or pointer, and every document whose border, is not what the
    ones before it say. After a wrong pointer the next ones are measured from it."""
    end = 0
    for first in range(0, len(index.lengths), SEQUENCES):
        lengths = index.lengths[first : first + SEQUENCES].astype(np.int64)
        pointers = np.asarray(index.pointers[first : first + SEQUENCES])
        for number in np.flatnonzero(lengths < 0):
            yield Flaw(f"sequence {first + number}", f"its length is {lengths[number]}")
        ends = pointers + lengths * index.dtype.itemsize
        expected = np.concatenate(([end], ends[:-1]))
        for number in np.flatnonzero(pointers != expected):
            yield Flaw(
                f"sequence {first + number}",
                f"begins at byte {pointers[number]} of .bin, the one before it ends at byte "
                f"{expected[number]}",
            )
        end = int(ends[-1])
    borders = np.asarray(index.borders)
    if not len(borders):
        yield Flaw("", "has no borders of documents")
        return
    if borders[0] != 0:
        yield Flaw("document 0", f"begins at sequence {borders[0]}, expected 0")
    for number in np.flatnonzero(np.diff(borders) < 0):
        yield Flaw(
            f"document {number + 1}",
            f"begins at sequence {borders[number + 1]}, before the document before it",
        )
    if borders[-1] != len(index.lengths):
        yield Flaw(
            f"document {len(borders) - 1}",
            f"the last document ends at sequence {borders[-1]} of {len(index.lengths)}",
        )


@dataclass
class Places:
    """The first places where something was found, and how many there are."""

    limit: int
    count: int = 0
    first: list[tuple[int, int]] = field(default_factory=list)
    """(offset in tokens, id)"""

    def add(self, offsets: Ints, ids: NDArray[Any]) -> None:
        """Adds places in the order in which they are found."""
        self.count += len(offsets)
        room = self.limit - len(self.first)
        self.first += zip(offsets[:room].tolist(), ids[:room].tolist(), strict=True)


@dataclass
class Scan:
    """A `.bin` read to its end.

    tokens: whole ones; text_bytes: UTF-8 bytes that they stand for.
    beyond: ids outside of the vocabulary; no_eos: last tokens of documents that are not EOS;
    eos_inside: EOS at other places.
    """

    sha256: str
    sums: NDArray[np.uint64]
    tokens: int
    text_bytes: int
    beyond: Places
    no_eos: Places
    eos_inside: Places


def scan_tokens(
    path: Path,
    dtype: np.dtype,
    vocab_size: int,
    eos_id: int,
    document_lengths: Ints,
    token_bytes: NDArray[np.uint16] | None = None,
    limit: int = 1,
) -> Scan:
    """Reads a `.bin` once, in pieces of 16 MiB.

    document_lengths: tokens of each document, from the index. token_bytes: bytes of each id, for
    `Scan.text_bytes`. limit: how many places of each kind are kept.
    """
    digest = hashlib.sha256()
    sums = []
    beyond, no_eos, eos_inside = Places(limit), Places(limit), Places(limit)
    ends = np.cumsum(document_lengths)[document_lengths > 0] - 1
    start = text_bytes = 0
    for data, block_sums in file_sums(path):
        digest.update(data)
        sums.append(block_sums)
        tokens = np.frombuffer(data, dtype, len(data) // dtype.itemsize)
        if not len(tokens):
            break  # a part of a token
        if int(tokens.max()) >= vocab_size or int(tokens.min()) < 0:
            wrong = np.flatnonzero((tokens >= vocab_size) | (tokens < 0))
            beyond.add(start + wrong, tokens[wrong])
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
    all_sums = np.concatenate(sums) if sums else np.empty(0, np.uint64)
    return Scan(digest.hexdigest(), all_sums, start, text_bytes, beyond, no_eos, eos_inside)


def blocks_that_differ(found: NDArray[np.uint64], expected: NDArray[np.uint64]) -> list[Flaw]:
    """Runs of blocks whose checksum is another, as bytes of `.bin`."""
    shared = min(len(found), len(expected))
    wrong = np.flatnonzero(found[:shared] != expected[:shared])
    runs = np.split(wrong, np.flatnonzero(np.diff(wrong) > 1) + 1) if len(wrong) else []
    return [
        Flaw(
            f"bytes {run[0] * BLOCK_BYTES} to {(run[-1] + 1) * BLOCK_BYTES}",
            "the content is not what the checksums of its blocks say",
        )
        for run in runs
    ]


def sha256_of_file(path: Path) -> str:
    """sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
