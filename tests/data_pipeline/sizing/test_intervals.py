"""Intervals against made populations whose truth is known."""

from __future__ import annotations

import math
import random
from itertools import groupby

import numpy as np
import pytest

from conf.errors import InputError
from data_pipeline.sizing.array import MARGIN, PhaseLoad, plan_array, seconds_of
from data_pipeline.sizing.intervals import (
    Interval,
    effective_number,
    share,
    share_of_whole,
    total,
)


def test_a_sample_that_is_the_whole_has_no_error():
    assert share(3, 12, 12, 1.0) == Interval(0.25, 0.25, 0.25)
    assert share(0, 0, 0, 0.1) == Interval(0.0, 0.5, 1.0)


@pytest.mark.parametrize("truth", [0.0, 0.01, 0.3, 0.97, 1.0])
@pytest.mark.parametrize("size", [20, 300, 5000])
def test_shares_of_independent_documents_are_in_their_interval(truth, size):
    draw = np.random.default_rng(3)
    found = [share(hits, size, size, 0.01) for hits in draw.binomial(size, truth, 400)]
    assert sum(one.low <= truth <= one.high for one in found) >= 390
    assert all(one.low <= one.value <= one.high for one in found)


def test_shares_of_groups_that_are_alike_are_in_their_interval():
    """Documents come in groups of very different sizes, all or none of which have a property."""
    draw = np.random.default_rng(4)
    inside = 0
    for _ in range(300):
        sizes = draw.integers(1, 40, 2000)
        has = draw.random(2000) < 0.2
        truth = float((sizes * has).sum() / sizes.sum())
        drawn = np.flatnonzero(draw.random(2000) < 0.1)
        groups = np.repeat(drawn, sizes[drawn]).astype(np.uint64)
        hits = float((sizes * has)[drawn].sum())
        effective = effective_number(groups)
        assert effective < len(drawn) < len(groups)
        found = share(hits, len(groups), effective, 0.1)
        inside += found.low <= truth <= found.high
    assert inside >= 293


def test_effective_number():
    assert effective_number(np.arange(9, dtype=np.uint64)) == 9
    assert effective_number(np.zeros(9, np.uint64)) == 1
    assert effective_number(np.arange(2, dtype=np.uint64), [3, 1]) == 16 / 10
    assert effective_number(np.empty(0, np.uint64)) == 0


def test_totals_add_independent_errors():
    found = total([(10.0, Interval(0.1, 0.4, 0.7)), (10.0, Interval(0.0, 0.4, 0.8))])
    assert math.isclose(found.value, 8.0)
    assert math.isclose(found.low, 8.0 - 5.0)
    assert math.isclose(found.high, 8.0 + 5.0)


POPULATIONS = {
    "nothing repeats": [1] * 40_000,
    "pairs": [2] * 20_000,
    "40% repeat one earlier document": [1] * 8_000 + [2] * 16_000,
    "boilerplate": [1] * 20_000 + [2000] * 10,
    "a few more often": [1, 2, 3, 5, 8, 13] * 1500,
    "heavy tail": [int(1 / (1 - n / 6000)) for n in range(6000)],
}


@pytest.mark.parametrize("read", [1.0, 0.5, 0.1, 0.02])
@pytest.mark.parametrize("sizes", POPULATIONS.values(), ids=POPULATIONS)
def test_duplicates_of_a_whole_of_which_a_part_was_read(sizes, read):
    documents = [group for group, size in enumerate(sizes) for _ in range(size)]
    truth = 1 - len(sizes) / len(documents)
    for seed in range(10):
        draw = random.Random(seed)
        part = [group for group in documents if draw.random() < read]
        found = [len(list(same)) for _, same in groupby(part)]
        dropped = (len(part) - len(found)) / len(part)
        error = 3 * math.sqrt(max(dropped, 1e-4) / len(part))
        seen = Interval(max(0.0, dropped - error), dropped, dropped + error)
        whole = share_of_whole(seen, [n for n in found if n > 1], len(part), read)
        assert whole.low <= truth <= whole.high, (seed, whole, truth)
        if read == 1:
            assert whole == seen


def test_pairs_are_extrapolated_exactly_enough():
    """If every copy is one of a pair, the upper bound is near the truth, and not 100%."""
    draw = random.Random(1)
    part = [group for group in range(100_000) for _ in range(2) if draw.random() < 0.1]
    found = [len(list(same)) for _, same in groupby(part)]
    dropped = (len(part) - len(found)) / len(part)
    pairs = [n for n in found if n > 1]
    whole = share_of_whole(Interval(dropped, dropped, dropped), pairs, len(part), 0.1)
    assert 0.5 < whole.high < 0.57


LOADS = [
    PhaseLoad("scan", 18_000, 4e6, 300.0, 2 << 30),
    PhaseLoad("match", 1024, 4000.0, 4.0, 1 << 30),
    PhaseLoad("prepare", 1, 600.0, 600.0, 40 << 30),
    PhaseLoad("encode", 18_000, 1e6, 80.0, 2 << 30),
]


@pytest.mark.parametrize("hours", [0.5, 2, 6, 48, 1000])
def test_the_array_is_the_smallest_that_finishes(hours):
    found = plan_array(LOADS, 5.0, hours, 32)
    assert found.seconds * MARGIN <= hours * 3600
    assert list(found.phases) == list(found.limits) == [load.name for load in LOADS]
    assert all(found.limits[name] >= 2 * took for name, took in found.phases.items())
    assert found.memory_bytes == max(64 << 30, 40 << 30)
    if found.tasks > 1:
        fewer = sum(5.0 + seconds_of(load, found.tasks - 1, 32) for load in LOADS)
        assert fewer * MARGIN > hours * 3600


def test_the_jobs_of_an_array_share_the_work():
    load = PhaseLoad("scan", 100, 1000.0, 10.0)
    assert seconds_of(load, 1, 1) == 1000
    assert seconds_of(load, 4, 5) == 50
    assert seconds_of(load, 100, 8) == seconds_of(load, 1000, 8) == 10


def test_a_time_that_no_array_meets_is_refused():
    with pytest.raises(InputError, match=r"hours=0\.1: expected 0\.\d or more, with any number"):
        plan_array(LOADS, 5.0, 0.1, 32)
