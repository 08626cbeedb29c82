"""Documents into sequences without cuts that can be avoided: best fit, longest first.

Lengths L_1 < L_2 < ... divide one another, and a block of the longest holds whole blocks of the
others. A document is placed inside one block of the smallest length that holds it, so that a stage
of that length, or of a longer one, never cuts it; a longer document is cut into pieces of the
longest length, and its rest is placed as a document is. Of the gaps that hold a document the
tightest is taken (Ding et al., 2024, "Fewer Truncations Improve Language Modeling").
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, order=True)
class Piece:
    """`length` tokens of a document from `start` on, placed at `offset`."""

    offset: int
    document: int
    start: int
    length: int


def fit(lengths: Sequence[int], blocks: Sequence[int]) -> tuple[list[Piece], int]:
    """Places documents of these lengths; returns the pieces by offset and the tokens of all blocks.

    blocks: the lengths of the sequences in tokens, each dividing the next. What no piece covers is
    padding; it is always at the end of a block of some length.
    """
    sizes = sorted(blocks)
    longest = sizes[-1]
    pieces, total = [], 0
    by_size: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for document, length in enumerate(lengths):
        whole = length // longest
        for number in range(whole):
            pieces.append(Piece(total, document, number * longest, longest))
            total += longest
        rest = length - whole * longest
        if rest:
            by_size[sizes[bisect_left(sizes, rest)]].append((rest, document))
    gaps = _Gaps()
    for size in reversed(sizes):
        gaps.cut(size)
        for rest, document in sorted(by_size[size], key=lambda item: (-item[0], item[1])):
            if not gaps.holds(rest):
                for start in range(total, total + longest, size):
                    gaps.add(start, size)
                total += longest
            offset = gaps.take(rest)
            pieces.append(Piece(offset, document, lengths[document] - rest, rest))
    return sorted(pieces), total


class _Gaps:
    """Free places, found by the room they have."""

    def __init__(self) -> None:
        self._starts: dict[int, list[int]] = {}
        self._rooms: list[int] = []  # sorted, of the places that there are

    def add(self, start: int, room: int) -> None:
        if room not in self._starts:
            self._starts[room] = []
            insort(self._rooms, room)
        self._starts[room].append(start)

    def holds(self, length: int) -> bool:
        return bool(self._rooms) and self._rooms[-1] >= length

    def take(self, length: int) -> int:
        """The start of the tightest gap; what is left of it stays a gap."""
        place = bisect_left(self._rooms, length)
        room = self._rooms[place]
        starts = self._starts[room]
        start = starts.pop()
        if not starts:
            del self._starts[room]
            self._rooms.pop(place)
        if room > length:
            self.add(start + length, room - length)
        return start

    def cut(self, size: int) -> None:
        """Cuts every gap at the multiples of size."""
        starts, self._starts, self._rooms = self._starts, {}, []
        for room, all_starts in sorted(starts.items()):
            for start in all_starts:
                end = start + room
                while start < end:
                    border = min(end, (start // size + 1) * size)
                    self.add(start, border - start)
                    start = border
