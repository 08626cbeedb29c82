"""Cuts texts into paragraphs, and stores digests of them in a sorted table for each unit."""

from __future__ import annotations

import hashlib
import re
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from conf.files import write_atomically
from data_pipeline.cleaning.config import DedupOptions
from data_pipeline.dedup.ranges import range_starts

PARAGRAPH = np.dtype([("high", "<u8"), ("low", "<u8"), ("number", "<u4"), ("index", "<u4")])
"""A paragraph: its digest, the number of its document, and its own number in the document."""
RANGES = 4096
"""Number of ranges of digests. There are many more paragraphs than documents."""
BREAKS = {"line": re.compile(r"(\n)"), "blank_line": re.compile(r"(\n[^\S\n]*\n\s*)")}
"""Pattern of what separates two paragraphs, by the option `paragraph_break`."""


class ParagraphTable:
    """Collects the paragraphs of a unit, which are cut from the text of one document at a time."""

    def __init__(self, options: DedupOptions, salt: bytes) -> None:
        self._options = options
        self._salt = salt
        self._digests = bytearray()
        self._numbers = array("I")
        self._indices = array("I")

    def __len__(self) -> int:
        return len(self._numbers)

    def add(self, number: int, text: str) -> None:
        """Adds the paragraphs of a document that are long enough."""
        for index, paragraph in long_paragraphs(text, self._options):
            raw = paragraph.encode("utf-8", "surrogatepass")
            self._digests += hashlib.blake2b(raw, digest_size=16, person=self._salt).digest()
            self._numbers.append(number)
            self._indices.append(index)

    def write(self, path: Path) -> None:
        """Writes the sorted table to a file."""
        table = np.empty(len(self), PARAGRAPH)
        halves = np.frombuffer(self._digests, "<u8").reshape(-1, 2)
        table["high"], table["low"] = halves[:, 0], halves[:, 1]
        table["number"], table["index"] = self._numbers, self._indices
        table.sort(order=["high", "low", "number", "index"])
        write_table(path, table)


def long_paragraphs(text: str, options: DedupOptions) -> Iterator[tuple[int, str]]:
    """Yields each paragraph that is long enough to be compared, with its number in the text.

    White space at both ends does not belong to a paragraph.
    """
    for index, piece in enumerate(BREAKS[options.paragraph_break].split(text)[::2]):
        if len(piece) >= options.paragraph_min_chars:
            piece = piece.strip()
            if len(piece) >= options.paragraph_min_chars:
                yield index, piece


def without(text: str, indices: set[int], options: DedupOptions) -> str:
    """Returns a text without some of its paragraphs, each with the break that follows it."""
    pieces = BREAKS[options.paragraph_break].split(text)
    last = len(pieces) // 2
    kept = [piece for number, piece in enumerate(pieces) if number // 2 not in indices]
    return "".join(kept[:-1] if last in indices else kept)


def scanned_path(work: Path, unit: int) -> Path:
    """Returns the path of the table of all paragraphs of a unit."""
    return work / "paragraphs" / f"{unit:06}.scanned"


def write_table(path: Path, table: NDArray[Any]) -> None:
    """Writes a sorted table after the places in it where each range begins."""
    starts = range_starts(np.ascontiguousarray(table["high"]), RANGES).astype("<u8")
    write_atomically(path, lambda file: file.writelines([starts.tobytes(), table.tobytes()]))


def read_table(path: Path, first: int, end: int) -> NDArray[Any]:
    """Returns the rows of a table in the ranges from `first` to `end`, exclusive."""
    with path.open("rb") as file:
        places = []
        for number in (first, end):
            file.seek(8 * number)
            places.append(int(np.fromfile(file, "<u8", 1)[0]))
        start, stop = places
        file.seek(8 * (RANGES + 1) + start * PARAGRAPH.itemsize)
        return np.fromfile(file, PARAGRAPH, stop - start)
