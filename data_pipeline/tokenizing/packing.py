"""Best-fit-decreasing packing of documents into sequences, without avoidable truncation.

Each of the block lengths L_1 < L_2 < ... divides the next, so a block of the longest length
consists of whole blocks of each shorter length. A document is placed inside one block of the
smallest length that it fits into, so a stage with that sequence length or a longer one never
truncates it. A document longer than the longest block is cut into pieces of that length, and the
remainder is placed like a document. Of the free spaces that a document fits into, the smallest is
taken (Ding et al., 2024, "Fewer Truncations Improve Language Modeling").

With blocks of 4 and 8 tokens, documents A, B, C and D of 3, 10, 7 and 2 tokens are packed like this
("." is padding):

    BBBBBBBB CCCCCCC. BBDDAAA.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, order=True)
class Piece:
    """A piece of a document: its tokens [start, start + length), which are placed at `offset`."""

    offset: int
    document: int
    start: int
    length: int


def pack(lengths: Sequence[int], block_lengths: Sequence[int]) -> tuple[list[Piece], int]:
    """Returns the pieces of all documents, sorted by offset, and the total length of all blocks.

    Positions that no piece covers are padding, which is always at the end of a block of one of the
    lengths.

    Args:
        lengths: Length of each document in tokens.
        block_lengths: Sequence lengths in tokens, each of which divides the next.
    """
    sizes = sorted(block_lengths)
    longest = sizes[-1]
    pieces, total = [], 0
    by_size: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for document, length in enumerate(lengths):
        whole = length // longest
        for number in range(whole):
            pieces.append(Piece(total, document, number * longest, longest))
            total += longest
        remainder = length - whole * longest
        if remainder:
            by_size[sizes[bisect_left(sizes, remainder)]].append((remainder, document))
    free = _FreeSpace()
    for size in reversed(sizes):
        free.split(size)
        for remainder, document in sorted(by_size[size], key=lambda item: (-item[0], item[1])):
            if not free.holds(remainder):
                for start in range(total, total + longest, size):
                    free.add(start, size)
                total += longest
            offset = free.take(remainder)
            pieces.append(Piece(offset, document, lengths[document] - remainder, remainder))
    return sorted(pieces), total


class _FreeSpace:
    """The free spaces in all blocks, indexed by their length."""

    def __init__(self) -> None:
        self._starts: dict[int, list[int]] = {}
        self._lengths: list[int] = []  # the keys of _starts, sorted

    def add(self, start: int, length: int) -> None:
        if length not in self._starts:
            self._starts[length] = []
            insort(self._lengths, length)
        self._starts[length].append(start)

    def holds(self, length: int) -> bool:
        return bool(self._lengths) and self._lengths[-1] >= length

    def take(self, length: int) -> int:
        """Takes `length` tokens from the smallest space they fit into, and returns their start."""
        index = bisect_left(self._lengths, length)
        found = self._lengths[index]
        starts = self._starts[found]
        start = starts.pop()
        if not starts:
            del self._starts[found]
            self._lengths.pop(index)
        if found > length:
            self.add(start + length, found - length)
        return start

    def split(self, size: int) -> None:
        """Splits every space at the multiples of `size`."""
        old, self._starts, self._lengths = self._starts, {}, []
        for length, starts in sorted(old.items()):
            for start in starts:
                end = start + length
                while start < end:
                    bound = min(end, (start // size + 1) * size)
                    self.add(start, bound - start)
                    start = bound
