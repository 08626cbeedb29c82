"""Finds the documents of earlier preparations that new documents repeat.

An earlier document is never dropped, and always precedes a new one. A new document is therefore
dropped if it is linked to any earlier one, directly or through other new ones. So links among
earlier documents do not matter, and earlier documents need not be sorted together with the new
ones: the sorted tables of each earlier unit are looked up in the sorted table of a task. That takes
no more memory, however many earlier documents there are.

Earlier units are numbered before the new ones, in the order of their folders.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_pipeline.dedup.components import Links
from data_pipeline.dedup.ranges import RANGES

UInts = NDArray[np.uint64]
Folders = Sequence[tuple[str, int]]
"""Index folders of earlier preparations, each with its number of units."""

DIGESTS, URLS, KEYS = ".npy", ".urls", ".keys"
"""Endings of the tables of a unit in an index: sorted digests of texts and of URLs, and MinHash
signatures."""

NONE = np.uint64(2**64 - 1)
ROWS_AT_ONCE = 1 << 18
"""Number of rows of an earlier table that are looked up at a time."""


def count_units(earlier: Folders) -> int:
    """Returns the number of earlier units, which is the number of the first new one."""
    return sum(units for _, units in earlier)


def unit_paths(earlier: Folders, suffix: str) -> Iterator[tuple[int, Path]]:
    """Yields the number of each earlier unit, and the path of its table with this suffix."""
    number = 0
    for folder, units in earlier:
        for unit in range(units):
            yield number, Path(folder) / f"{unit:06}{suffix}"
            number += 1


class FirstDocuments:
    """The first earlier document for each of the sorted hashes of new documents.

    Attributes:
        found: number of that document for each hash, or NONE.
    """

    def __init__(self, high: UInts, low: UInts | None = None) -> None:
        """Creates a table for hashes without repeats, sorted by `high` and then by `low`."""
        self.high, self.low = high, low
        self.found = np.full(len(high), NONE)
        repeats = np.flatnonzero(np.concatenate([[True], high[1:] != high[:-1], [True]]))
        self._most_alike = int(np.diff(repeats).max()) if len(high) else 0

    def look_up(self, high: UInts, documents: UInts, low: UInts | None = None) -> None:
        """Compares the hashes of earlier documents, in any order."""
        place = np.searchsorted(self.high, high)
        for offset in range(self._most_alike):
            at = place + offset
            same = at < len(self.high)
            same[same] = self.high[at[same]] == high[same]
            if low is not None and self.low is not None:
                same[same] = self.low[at[same]] == low[same]
            np.minimum.at(self.found, at[same], documents[same])

    def links(self, documents: UInts) -> Links:
        """Returns links to the earlier documents, given the new document of each hash."""
        known = self.found != NONE
        return np.stack([documents[known], self.found[known]])


def look_up_digests(
    table: FirstDocuments, units: Iterable[tuple[int, Path]], first: int, end: int
) -> None:
    """Looks up the digests of earlier units in the ranges from `first` to `end`, exclusive."""
    for unit, path in units:
        digests = np.load(path, mmap_mode="r")
        low = bisect_left(digests["high"], first << 56)
        high = len(digests) if end == RANGES else bisect_left(digests["high"], end << 56)
        for start in range(low, high, ROWS_AT_ONCE):
            rows = digests[start : min(high, start + ROWS_AT_ONCE)]
            documents = rows["number"] + np.uint64(unit << 32)
            keys = np.ascontiguousarray(rows["high"])
            table.look_up(keys, documents, np.ascontiguousarray(rows["low"]))
