"""Any number of samples is dealt to any number of ranks, without loss or repetition.

Blank samples cost little and are valid.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.sampling.batches import held_out_batches, held_out_samples
from data_pipeline.sampling.dealing import Deal
from data_pipeline.sampling.padding import pad_batches


@given(st.integers(1, 5000), st.integers(1, 600), st.integers(1, 70))
def test_every_sample_is_dealt_once_and_little_is_blank(samples, ranks, most_rows):
    deal = Deal.of(samples, ranks, most_rows)
    shares = [deal.share(rank) for rank in range(ranks)]
    assert [sample for share in shares for sample in share] == list(range(samples))
    sizes = {len(share) for share in shares}
    assert max(sizes) - min(sizes) <= 1
    assert 1 <= deal.rows <= most_rows
    assert max(sizes) <= deal.micro_batches * deal.rows
    blank = deal.computed - samples
    assert 0 <= blank < ranks * deal.micro_batches
    # Fewer micro-batches, or fewer rows in them, would not hold the largest share.
    assert (deal.micro_batches - 1) * most_rows < max(sizes)
    assert deal.micro_batches * (deal.rows - 1) < max(sizes)


@given(st.integers(1, 50), st.integers(1, 50), st.integers(1, 50), st.integers(1, 50))
def test_what_comes_out_even_is_dealt_as_it_is_stated(ranks, micro_batches, rows, rank):
    deal = Deal.of(ranks * micro_batches * rows, ranks, rows)
    assert (deal.rows, deal.micro_batches) == (rows, micro_batches)
    share = micro_batches * rows
    assert deal.share(rank % ranks) == range(rank % ranks * share, (rank % ranks + 1) * share)


def test_the_last_stage_of_danube():
    """72 sequences of 16,384 tokens."""
    found = {ranks: Deal.of(72, ranks, 1).computed for ranks in (8, 16, 32, 64, 72, 100)}
    assert found == {8: 72, 16: 80, 32: 96, 64: 128, 72: 72, 100: 100}


@pytest.mark.parametrize("ranks", [1, 2, 3, 7, 30])
@pytest.mark.parametrize("rows", [1, 4])
def test_held_out_samples_are_dealt_without_losing_one(corpus, ranks, rows):
    count = held_out_samples(corpus, "code", 64, 1300)
    whole = list(held_out_batches(corpus, "code", 64, 4, 1300))
    assert sum(len(batch.tokens) for batch in whole) == count == 20
    deal = Deal.of(count, ranks, rows)
    dealt = [
        pad_batches(
            held_out_batches(corpus, "code", 64, deal.rows, 1300, deal.share(rank)), deal, 64, 1, 50
        )
        for rank in range(ranks)
    ]
    assert {len(mine) for mine in dealt} == {deal.micro_batches}
    assert {batch.tokens.shape for mine in dealt for batch in mine} == {(deal.rows, 64)}
    real = [batch.labels[: len(batch.samples)] for mine in dealt for batch in mine]
    assert torch.equal(torch.cat(real), torch.cat([batch.labels for batch in whole]))
