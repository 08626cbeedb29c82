"""Compares the files of one shard with its entry in the manifest, and lists every difference."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.store.checksums import CHECKSUM, sha256_of_file
from data_pipeline.store.manifest import Manifest
from data_pipeline.store.shard_scan import (
    BadIndex,
    Flaw,
    Occurrences,
    checksum_flaws,
    index_flaws,
    read_index,
    scan_tokens,
)
from data_pipeline.store.shards import Ints
from data_pipeline.store.sizes import expected_sizes

TABLE = ".docs.parquet"


@dataclass(frozen=True)
class Problem:
    """A difference between a file and the manifest.

    Attributes:
        file: Path of the file in the corpus folder.
        place: Position in the file; empty if the problem concerns the whole file.
        text: Description of the problem.
    """

    file: str
    place: str
    text: str

    def __str__(self) -> str:
        return f"{self.file}{f', {self.place}' if self.place else ''}: {self.text}"


def missing_or_wrong_size(manifest: Manifest, entry: dict[str, Any]) -> Iterator[Problem]:
    """Yields a problem for each file of a shard that is missing or has the wrong size."""
    name, tokens = entry["file"], entry["tokens"]
    sizes: dict[str, int | None] = {**expected_sizes(manifest, entry), ".idx": None}
    for suffix, expected in sizes.items():
        path = manifest.folder / f"{name}{suffix}"
        if not path.is_file():
            yield Problem(f"{name}{suffix}", "", "is missing")
        elif expected is not None and (found := path.stat().st_size) != expected:
            yield Problem(
                f"{name}{suffix}",
                f"byte {min(found, expected)}",
                f"has {found} bytes, but the manifest requires {expected} for {tokens} tokens",
            )
    if manifest.origin == "tokenize" and not (manifest.folder / f"{name}{TABLE}").is_file():
        yield Problem(f"{name}{TABLE}", "", "is missing")


class ShardCheck:
    """Reads a shard completely and collects its problems.

    It does not check file sizes, which `missing_or_wrong_size` does, so that no problem is listed
    twice.

    Args:
        manifest: Manifest of the corpus.
        entry: The shard's entry in the manifest.
        max_listed: Problems of one kind to list per file; the others are only counted.
    """

    def __init__(self, manifest: Manifest, entry: dict[str, Any], max_listed: int) -> None:
        self.manifest = manifest
        self.entry = entry
        self.max_listed = max_listed
        self.problems: list[Problem] = []

    def run(self) -> list[Problem]:
        """Returns the problems of the shard, in the order of its files."""
        self._check_table()
        document_lengths = self._check_index()
        self._check_tokens(document_lengths)
        self._check_mask()
        return self.problems

    def _path(self, suffix: str) -> Path:
        return self.manifest.folder / f"{self.entry['file']}{suffix}"

    def _add(self, suffix: str, flaws: Iterable[Flaw]) -> None:
        file = f"{self.entry['file']}{suffix}"
        count = 0
        for count, flaw in enumerate(flaws, 1):
            if count <= self.max_listed:
                self.problems.append(Problem(file, flaw.place, flaw.text))
        self._add_rest(file, count - self.max_listed)

    def _add_occurrences(self, found: Occurrences, text: str) -> None:
        file = f"{self.entry['file']}.bin"
        self.problems += [
            Problem(file, f"token {offset}", text.format(token)) for offset, token in found.first
        ]
        self._add_rest(file, found.count - len(found.first))

    def _add_rest(self, file: str, count: int) -> None:
        if count > 0:
            self.problems.append(Problem(file, "", f"{count} more of this kind"))

    def _check_table(self) -> None:
        """Checks that the table of documents has one row per document."""
        import pyarrow.parquet as pq

        documents = self.entry["documents"]
        if not self._path(TABLE).is_file():
            return
        try:
            with pq.ParquetFile(self._path(TABLE)) as file:
                columns, rows = file.schema_arrow.names, file.metadata.num_rows
        except Exception as error:  # pyarrow raises many types for a damaged file
            self._add(TABLE, [Flaw("", f"cannot be read ({error})")])
            return
        if not {"file", "position"} <= set(columns):
            text = f"has the columns {', '.join(columns)}, but file and position are required"
            self._add(TABLE, [Flaw("", text)])
        if rows != documents:
            text = f"has {rows} rows, but the manifest has {documents} documents"
            self._add(TABLE, [Flaw(f"row {min(rows, documents)}", text)])

    def _check_index(self) -> Ints:
        """Checks the index and returns the tokens per document; empty if the index is unusable."""
        unknown = np.empty(0, np.int64)
        if not self._path(".idx").is_file():
            return unknown
        digest = sha256_of_file(self._path(".idx"))
        if digest != self.entry["idx_sha256"]:
            self._add(".idx", [_wrong_hash(digest, self.entry["idx_sha256"])])
        try:
            index = read_index(self._path(".idx"))
        except BadIndex as error:
            self._add(".idx", [error.flaw])
            return unknown
        self._add(".idx", index_flaws(index))
        if index.dtype != np.dtype(self.manifest.dtype):
            text = f"has ids of type {index.dtype}, but the manifest has {self.manifest.dtype}"
            self._add(".idx", [Flaw("byte 17", text)])
        for what, count in (("documents", index.documents), ("tokens", index.tokens)):
            if count != self.entry[what]:
                text = f"has {count} {what}, but the manifest has {self.entry[what]}"
                self._add(".idx", [Flaw("", text)])
        return index.document_lengths() if (index.lengths >= 0).all() else unknown

    def _check_tokens(self, document_lengths: Ints) -> None:
        if not self._path(".bin").is_file():
            return
        vocab_size = self.manifest.vocab_size
        eos_id = int(self.manifest.tokenizer["eos_id"])
        dtype = np.dtype(self.manifest.dtype)
        scan = scan_tokens(
            *(self._path(".bin"), dtype, vocab_size, eos_id, document_lengths),
            limit=self.max_listed,
        )
        is_damaged = scan.sha256 != self.entry["sha256"]
        if is_damaged:
            self._add(".bin", [_wrong_hash(scan.sha256, self.entry["sha256"])])
        if self.entry.get("sums") and self._path(".sums").is_file():
            flaws = checksum_flaws(scan.checksums, np.fromfile(self._path(".sums"), CHECKSUM))
            if is_damaged:
                self._add(".bin", flaws)
            else:
                text = "does not match .bin, whose sha256 is correct"
                self._add(".sums", (Flaw(flaw.place, text) for flaw in flaws))
        outside = f"has the id {{}}, outside the vocabulary of {vocab_size} ids"
        self._add_occurrences(scan.outside_vocabulary, outside)
        if self.manifest.ends_in_eos and len(document_lengths):
            eos = f"EOS ({eos_id})"
            if not self.manifest.packed:  # pieces of cut documents and padding need no EOS
                self._add_occurrences(scan.no_eos, f"a document ends in {{}} instead of {eos}")
            self._add_occurrences(scan.eos_inside, f"{eos} occurs inside a document")

    def _check_mask(self) -> None:
        path = self._path(".mask")
        if self.entry.get("masked") and path.is_file() and path.stat().st_size:
            wrong = np.flatnonzero(np.memmap(path, np.uint8, mode="r") > 1)
            self._add(".mask", (Flaw(f"token {at}", "is neither 0 nor 1") for at in wrong))


def _wrong_hash(found: str, expected: str) -> Flaw:
    return Flaw("", f"has the sha256 {found[:16]}, but the manifest has {str(expected)[:16]}")
