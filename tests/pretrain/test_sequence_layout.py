"""The positions and keys of context-parallel ranks, against the masks of attention."""

from __future__ import annotations

import pytest

from pretrain.sequence_layout import (
    busiest_exchange,
    exchanged,
    fetched_keys,
    gathers_all,
    needed_keys,
    own_positions,
    query_ranges,
    with_window,
)

SEQ = 48


def positions(intervals):
    return {position for start, end in intervals for position in range(start, end)}


@pytest.mark.parametrize("balanced", [False, True])
@pytest.mark.parametrize("size", [2, 3, 4])
@pytest.mark.parametrize("window", [1, 2, 7, 12, 13, 20, 40, 47])
def test_ranks_fetch_the_keys_that_their_queries_see(window, size, balanced):
    owners, needed = [], []
    for rank in range(size):
        ranges = with_window(query_ranges(rank, size, SEQ, balanced), window)
        owners.append(positions(own_positions(ranges)))
        needed.append(positions(needed_keys(ranges)))
        seen = {
            key for query in owners[rank] for key in range(max(0, query - window + 1), query + 1)
        }
        assert needed[rank] == seen
    assert sorted(position for own in owners for position in own) == list(range(SEQ))
    counted = exchanged(size, SEQ, balanced, window)
    for rank in range(size):
        for other in range(size):
            shared = needed[rank] & owners[other] if rank != other else set()
            assert counted[rank][other] == len(shared)
    most = max(len(keys - own) for keys, own in zip(needed, owners, strict=True))
    assert fetched_keys(size, SEQ, balanced, window) == most
    assert gathers_all(size, SEQ, balanced, window) == any(len(keys) == SEQ for keys in needed)
    total = [sum(counted[rank]) + sum(row[rank] for row in counted) for rank in range(size)]
    assert busiest_exchange(size, SEQ, balanced, window) == max(total)


def test_a_window_needs_less_than_all_keys_next_to_full_attention():
    """64k tokens on 8 ranks with a window of 1024: both pieces have a halo of 1023 keys."""
    assert fetched_keys(8, 65536, True, None) == 57344
    assert fetched_keys(8, 65536, True, 1024) == 2 * 1023
    assert fetched_keys(8, 65536, False, 1024) == 1023
