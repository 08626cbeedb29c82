"""I1 and I3: the order of samples, property by property."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conf.errors import InputError
from data_pipeline.feistel import derive_key, permute
from data_pipeline.mixture import UNITS, Mixture
from data_pipeline.order import OrderStage, SampleOrder

SEQ_LENS = (8, 16, 32)


@st.composite
def orders(draw):
    """Orders of one to three sources and one to three stages that fit into four epochs."""
    sources = {f"s{i}": draw(st.integers(200, 40_000)) for i in range(draw(st.integers(1, 3)))}
    stages = []
    for _ in range(draw(st.integers(1, 3))):
        weights = {s: draw(st.sampled_from([0.0, 0.1, 0.3, 1.0, 2.5])) for s in sources}
        weights[next(iter(sources))] += 0.05
        samples = draw(st.integers(1, 600))
        stages.append(OrderStage(draw(st.sampled_from(SEQ_LENS)), samples, weights))
    return SampleOrder(sources, stages, draw(st.integers(0, 2**40)), atom=32)


def everything(order: SampleOrder):
    """(stage, source, epoch, start) of every sample of the plan, in order."""
    for number, stage in enumerate(order.stages):
        at = order.locate(number, np.arange(stage.samples))
        yield from zip(
            [number] * stage.samples,
            at.source.tolist(),
            at.epoch.tolist(),
            at.start.tolist(),
            strict=True,
        )


@given(st.integers(1, 5000), st.integers(0, 2**64 - 1))
@settings(max_examples=60, deadline=None)
def test_permute_is_a_bijection(size, key):
    assert np.array_equal(np.sort(permute(np.arange(size), size, key)), np.arange(size))


@pytest.mark.parametrize("size", [1, 2, 3, 4, 2**20, 2**40 - 1, 2**61])
def test_permute_stays_in_range(size):
    index = np.unique(np.linspace(0, size - 1, 500).astype(np.int64))
    out = permute(index, size, derive_key("x"))
    assert len(np.unique(out)) == len(index)
    assert out.min() >= 0
    assert out.max() < size


def test_permute_takes_a_range_and_a_key_for_each_element():
    sizes = np.array([5, 9, 1, 1000])
    keys = np.array([1, 2, 3, 4], np.uint64)
    one_by_one = [
        int(permute(np.array(0), int(n), int(k))) for n, k in zip(sizes, keys, strict=True)
    ]
    assert permute(np.zeros(4, np.int64), sizes, keys).tolist() == one_by_one


def test_permuted_neighbours_are_unrelated():
    out = permute(np.arange(100_000), 100_000, derive_key(3)).astype(float)
    assert abs(np.corrcoef(out[:-1], out[1:])[0, 1]) < 0.01
    assert abs(np.corrcoef(out, np.arange(100_000))[0, 1]) < 0.01


@given(st.lists(st.sampled_from([0.0, 1e-9, 0.01, 0.2, 1.0, 7.0]), min_size=1, max_size=8))
@settings(max_examples=100, deadline=None)
def test_mixture_counts_sum_grow_by_one_and_keep_their_shares(weights):
    weights[0] += 0.5
    mixture = Mixture(weights)
    assert sum(mixture.units) == UNITS
    t = np.arange(3000)
    counts = mixture.counts(t)
    assert np.array_equal(counts.sum(axis=0), t)
    steps = np.diff(counts, axis=1)
    assert set(np.unique(steps)) <= {0, 1}
    shares = np.array(weights)[:, None] / sum(weights)
    assert np.abs(counts - shares * t).max() <= 1 + len(weights) / 2
    source, number = mixture.locate(t[:-1])
    assert np.array_equal(source, np.argmax(steps, axis=0))
    assert np.array_equal(number, counts[source, t[:-1]])


def test_mixture_is_exact_for_ten_trillion_tokens():
    mixture = Mixture([0.845, 0.1, 0.055])
    t = np.array(10**13 // 512)
    counts = mixture.counts(t)
    assert counts.sum() == t
    assert (counts > 0).all()
    np.testing.assert_allclose(counts / t, [0.845, 0.1, 0.055], atol=1e-6)


@given(orders())
@settings(max_examples=80, deadline=None)
def test_no_token_comes_twice_within_an_epoch(order):
    """Across stages of different length and mixture."""
    served: Counter[tuple[int, int, int]] = Counter()
    for stage, source, epoch, start in everything(order):
        seq_len = order.stages[stage].seq_len
        assert start + seq_len + 1 <= order.source_tokens[order.sources[source]]
        for unit in range(start // 8, (start + seq_len) // 8):
            served[source, epoch, unit] += 1
    assert max(served.values()) == 1


@given(orders())
@settings(max_examples=30, deadline=None)
def test_an_epoch_starts_when_the_one_before_is_used_up(order):
    epochs: dict[int, int] = {}
    for number, stage in enumerate(order.stages):
        at = order.locate(number, np.arange(stage.samples))
        for source in np.unique(at.source):
            last = epochs.get(int(source), 0)
            assert at.epoch[at.source == source].min() >= last - 1
            epochs[int(source)] = max(last, int(at.epoch[at.source == source].max()))


@given(orders(), st.integers(1, 64), st.integers(0, 599))
@settings(max_examples=60, deadline=None)
def test_any_split_over_ranks_and_any_restart_give_the_same_samples(order, ranks, restart):
    samples = np.arange(order.stages[0].samples)
    whole = order.locate(0, samples)
    dealt: dict[int, tuple] = {}
    again = SampleOrder.from_json(order.to_json())
    for rank in range(ranks):
        mine = samples[min(restart, len(samples)) :][rank::ranks]
        at = again.locate(0, mine)
        dealt |= dict(
            zip(mine.tolist(), zip(at.source, at.epoch, at.start, strict=True), strict=True)
        )
    for sample, place in dealt.items():
        assert place == (whole.source[sample], whole.epoch[sample], whole.start[sample])


@given(orders(), st.floats(0, 1))
@settings(max_examples=60, deadline=None)
def test_consumed_equals_a_count_by_hand(order, fraction):
    stage = len(order.stages) - 1
    samples = int(fraction * order.stages[stage].samples)
    counted = dict.fromkeys(order.sources, 0)
    for number, source, _, _ in list(everything(order))[: _before(order, stage) + samples]:
        counted[order.sources[source]] += order.stages[number].seq_len
    assert order.consumed(stage, samples) == counted


def _before(order: SampleOrder, stage: int) -> int:
    return sum(s.samples for s in order.stages[:stage])


def test_editing_a_later_stage_leaves_the_past_alone():
    sources = {"a": 100_000, "b": 50_000}
    first = OrderStage(16, 1000, {"a": 1, "b": 1})
    one = SampleOrder(sources, [first, OrderStage(32, 500, {"a": 1})], 7)
    other = SampleOrder(sources, [first, OrderStage(8, 900, {"a": 0.2, "b": 0.8})], 7, atom=32)
    samples = np.arange(1000)
    assert np.array_equal(one.locate(0, samples).start, other.locate(0, samples).start)
    assert np.array_equal(one.locate(0, samples).source, other.locate(0, samples).source)
    assert one.fingerprint != other.fingerprint


def test_the_seed_and_the_names_decide():
    stage = OrderStage(16, 500, {"a": 1})
    samples = np.arange(500)
    starts = [
        SampleOrder({"a": 50_000}, [stage], seed).locate(0, samples).start.tolist()
        for seed in (0, 0, 1)
    ]
    assert starts[0] == starts[1]
    assert starts[0] != starts[2]


def test_a_trillion_tokens_cost_nothing():
    order = SampleOrder(
        {"web": 6 * 10**12, "code": 10**12},
        [
            OrderStage(2048, 3 * 10**8, {"web": 0.9, "code": 0.1}),
            OrderStage(16384, 6 * 10**6, {"web": 0.6, "code": 0.4}),
        ],
        0,
        max_epochs=1,
    )
    at = order.locate(1, np.array([0, 5_999_999]))
    assert (at.epoch == 0).all()
    assert sum(order.consumed(1, 6 * 10**6).values()) == 2048 * 3 * 10**8 + 16384 * 6 * 10**6


def test_too_many_epochs_are_refused_with_source_and_figures():
    stages = [OrderStage(16, 1000, {"a": 1, "b": 1})]
    with pytest.raises(InputError, match=r"source 'b' .* \(2,000 tokens there\), more than"):
        SampleOrder({"a": 100_000, "b": 2_000}, stages, 0, max_epochs=4)
    SampleOrder({"a": 100_000, "b": 2_000}, stages, 0, max_epochs={"a": 1, "b": 5})


def test_stages_that_do_not_fit_are_refused():
    with pytest.raises(InputError, match="sequences of 24 tokens, which do not divide the atom"):
        SampleOrder({"a": 9999}, [OrderStage(24, 5, {"a": 1}), OrderStage(32, 5, {"a": 1})], 0)
    with pytest.raises(InputError, match="source 'a' has 32 tokens, fewer than one atom of 32"):
        SampleOrder({"a": 32}, [OrderStage(32, 1, {"a": 1})], 0)
    SampleOrder({"a": 33}, [OrderStage(32, 1, {"a": 1})], 0)


@pytest.mark.parametrize("sample", [-1, 10, 500])
def test_a_sample_outside_of_its_stage_is_refused(sample):
    """Beyond the last window there is no range to permute: it would walk for ever."""
    order = SampleOrder({"a": 9999}, [OrderStage(16, 10, {"a": 1})], 0)
    with pytest.raises(IndexError, match="stage 0 has samples 0 to 9, asked for"):
        order.locate(0, np.array([3, sample]))
