"""Which positions of a sequence each context-parallel rank computes, and which keys it fetches.

All layers share one layout of positions:

- If every layer has a sliding window, each rank has contiguous positions. It fetches the W - 1 keys
  before its own, a halo that its left neighbors have and that does not grow with the sequence. With
  2 ranks, 8 tokens and W = 3:

      rank 0: 0 1 2 3                 fetches nothing
      rank 1: 4 5 6 7                 fetches keys 2 3

- If any layer has full attention, early positions attend to fewer keys than late ones. Each rank
  therefore gets one piece from the start and one from the end, which balances the work (arXiv
  2407.21783, section 3.3.2). Layers with full attention fetch all keys, which are few with
  grouped-query attention; layers with a window fetch the halo of both pieces:

      rank 0: 0 1         6 7         fetches all keys, or keys 4 5
      rank 1:     2 3 4 5             fetches all keys, or keys 0 1
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

from model.attention.mask import QueryRange

Intervals = list[tuple[int, int]]
"""Disjoint ranges [start, end) of positions, in order."""


def query_ranges(rank: int, size: int, seq: int, balanced: bool) -> list[QueryRange]:
    """Returns the queries of one of `size` ranks, with the first key of full attention.

    balanced: whether any layer has full attention.
    """
    if not balanced:
        start = rank * (seq // size)
        return [QueryRange(start, start + seq // size, 0)]
    piece = seq // (2 * size)
    starts = (rank * piece, (2 * size - 1 - rank) * piece)
    return [QueryRange(start, start + piece, 0) for start in starts]


def with_window(ranges: Sequence[QueryRange], window: int | None) -> list[QueryRange]:
    """Returns the queries, each range with the first key that it needs under a window."""
    if window is None:
        return list(ranges)
    return [part._replace(first_key=max(0, part.start - window + 1)) for part in ranges]


def own_positions(ranges: Sequence[QueryRange]) -> Intervals:
    """Returns the positions of a rank's queries."""
    return [(part.start, part.end) for part in ranges]


def needed_keys(ranges: Sequence[QueryRange]) -> Intervals:
    """Returns the positions of all keys that a rank's queries need, its own included."""
    merged: Intervals = []
    for part in ranges:
        start = part.first_key
        if merged and start <= merged[-1][1]:
            merged[-1] = (min(merged[-1][0], start), part.end)
        else:
            merged.append((start, part.end))
    return merged


def common(one: Intervals, other: Intervals) -> Intervals:
    """Returns the positions that are in both."""
    pairs = [(max(a, c), min(b, d)) for a, b in one for c, d in other]
    return [(start, end) for start, end in pairs if start < end]


def length(intervals: Intervals) -> int:
    """Returns the number of positions."""
    return sum(end - start for start, end in intervals)


@cache
def exchanged(size: int, seq: int, balanced: bool, window: int) -> tuple[tuple[int, ...], ...]:
    """Returns how many keys each rank fetches from each other under a window.

    The entry [i][j] is the number of keys that rank i fetches from rank j.
    """
    of_ranks = [query_ranges(rank, size, seq, balanced) for rank in range(size)]
    needed = [needed_keys(with_window(ranges, window)) for ranges in of_ranks]
    return tuple(
        tuple(
            0 if rank == other else length(common(needed[rank], own_positions(of_ranks[other])))
            for other in range(size)
        )
        for rank in range(size)
    )


def fetched_keys(size: int, seq: int, balanced: bool, window: int | None) -> int:
    """Returns the largest number of keys that a rank fetches from all others in a layer."""
    if window is None:
        return seq - seq // size
    return max(sum(row) for row in exchanged(size, seq, balanced, window))


def gathers_all(size: int, seq: int, balanced: bool, window: int | None) -> bool:
    """Returns whether a layer gathers all keys, because some rank needs all of them."""
    return fetched_keys(size, seq, balanced, window) == seq - seq // size


def busiest_exchange(size: int, seq: int, balanced: bool, window: int) -> int:
    """Returns the largest number of keys that a rank sends and fetches in a layer with a window."""
    keys = exchanged(size, seq, balanced, window)
    sent = [sum(row[rank] for row in keys) for rank in range(size)]
    return max(sum(row) + sent[rank] for rank, row in enumerate(keys))
