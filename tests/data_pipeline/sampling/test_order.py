"""Properties of the order of samples (I1 and I3)."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conf.errors import InputError
from data_pipeline.sampling import order as order_module
from data_pipeline.sampling.feistel import derive_key, permute, unpermute
from data_pipeline.sampling.mixture import UNITS, Mixture
from data_pipeline.sampling.order import SampleOrder
from data_pipeline.sampling.stage import Stage
from tests.data_pipeline.sampling.drawn import SEQ_LENS, everything, orders

ANY = orders() | orders(ended_early=True) | orders(ended_early=True, grown=True)


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


@given(st.integers(1, 2**61), st.integers(0, 2**64 - 1), st.integers(0, 2**61))
@settings(max_examples=60, deadline=None)
def test_unpermute_undoes_permute(size, key, some):
    index = np.unique((np.arange(40) * (size // 40 + 1) + some) % size)
    assert np.array_equal(unpermute(permute(index, size, key), size, key), index)
    assert np.array_equal(permute(unpermute(index, size, key), size, key), index)


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


@given(
    st.lists(st.sampled_from([0.0, 1e-9, 0.01, 0.2, 1.0, 7.0]), min_size=1, max_size=8),
    st.integers(0, 4 * 10**11),
)
@settings(max_examples=100, deadline=None)
def test_mixture_position_undoes_locate(weights, far):
    weights[-1] += 0.5
    mixture = Mixture(weights)
    t = np.concatenate((np.arange(500), far + np.arange(500)))
    source, number = mixture.locate(t)
    for one in np.unique(source):
        mine = source == one
        assert np.array_equal(mixture.position(int(one), number[mine]), t[mine])


def test_mixture_is_exact_for_ten_trillion_tokens():
    mixture = Mixture([0.845, 0.1, 0.055])
    t = np.array(10**13 // 512)
    counts = mixture.counts(t)
    assert counts.sum() == t
    assert (counts > 0).all()
    np.testing.assert_allclose(counts / t, [0.845, 0.1, 0.055], atol=1e-6)


@given(ANY)
@settings(max_examples=120, deadline=None)
def test_no_token_comes_twice_within_an_epoch(order):
    """The stages differ in sequence length and mixture."""
    served: Counter[tuple[int, int, int]] = Counter()
    for stage, source, epoch, start in everything(order):
        seq_len = order.stages[stage].seq_len
        assert start + seq_len + 1 <= order.tokens_of(stage)[order.sources[source]]
        for unit in range(start // 8, (start + seq_len) // 8):
            served[source, epoch, unit] += 1
    assert max(served.values()) == 1


@given(orders() | orders(grown=True))
@settings(max_examples=40, deadline=None)
def test_an_epoch_starts_when_the_one_before_is_used_up(order):
    epochs: dict[int, int] = {}
    for number, stage in enumerate(order.stages):
        at = order.locate(number, np.arange(stage.samples))
        for source in np.unique(at.source):
            last = epochs.get(int(source), 0)
            assert at.epoch[at.source == source].min() >= last - 1
            epochs[int(source)] = max(last, int(at.epoch[at.source == source].max()))


@given(ANY, st.integers(1, 64), st.integers(0, 599))
@settings(max_examples=80, deadline=None)
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


@given(ANY, st.floats(0, 1))
@settings(max_examples=80, deadline=None)
def test_consumed_equals_a_count_by_hand(order, fraction):
    stage = len(order.stages) - 1
    samples = int(fraction * order.stages[stage].samples)
    counted = dict.fromkeys(order.sources, 0)
    for number, source, _, _ in list(everything(order))[: _before(order, stage) + samples]:
        counted[order.sources[source]] += order.stages[number].seq_len
    assert order.consumed(stage, samples) == counted


@given(ANY, st.integers(0, 40_000), st.integers(1, 200))
@settings(max_examples=100, deadline=None)
def test_find_gives_the_samples_that_hold_a_range_and_no_other(order, start, size):
    for number, source in enumerate(order.sources):
        expected = []
        for stage, plan in enumerate(order.stages):
            at = order.locate(stage, np.arange(plan.samples))
            hit = (at.source == number) & (at.start < start + size)
            for sample in np.flatnonzero(hit & (at.start + plan.seq_len > start)):
                expected.append((stage, sample, at.epoch[sample], at.start[sample]))
        found = order.find(source, start, start + size)
        rows = zip(found.stage, found.sample, found.epoch, found.start, strict=True)
        assert [tuple(map(int, row)) for row in rows] == [tuple(map(int, r)) for r in expected]


def test_find_in_a_trillion_tokens():
    order = SampleOrder(
        {"web": 10**12, "code": 10**11},
        [
            Stage(2048, 3 * 10**8, {"web": 0.7, "code": 0.3}, planned_samples=4 * 10**8),
            Stage(2048, 3 * 10**8, {"web": 0.3, "code": 0.7}),
        ],
        0,
        atom=16384,
    )
    for stage, sample in ((0, 0), (0, 299_999_999), (1, 7), (1, 123_456_789)):
        at = order.locate(stage, np.array([sample]))
        start = int(at.start[0])
        found = order.find(order.sources[int(at.source[0])], start + 5, start + 6)
        mine = (found.stage == stage) & (found.sample == sample)
        assert mine.sum() == 1
        assert found.epoch[mine] == at.epoch


@st.composite
def changes(draw):
    """Draws a plan, a point in its first or second stage, and what replaces the rest.

    The corpus may have grown for what replaces it.
    """
    order = draw(orders())
    stage = draw(st.integers(0, len(order.stages) - 1))
    old = order.stages[stage]
    samples = draw(st.integers(1, old.samples))
    shorter = [n for n in SEQ_LENS if n <= old.seq_len]
    weights = {s: draw(st.sampled_from([0.1, 0.3, 1.0, 2.5])) for s in order.sources}
    larger = {s: n + draw(st.integers(0, 9000)) for s, n in order.source_tokens.items()}
    grown = larger if draw(st.booleans()) else None
    later = Stage(draw(st.sampled_from(shorter)), draw(st.integers(1, 3000)), weights, None, grown)
    ended = replace(old, samples=samples, planned_samples=old.samples)
    stages = [*order.stages[:stage], ended, later]
    changed = SampleOrder(order.source_tokens, stages, order.seed, atom=order.atom)
    return order, changed, stage, samples


@given(changes())
@settings(max_examples=120, deadline=None)
def test_a_change_of_mixture_and_length_at_any_point_loses_and_repeats_nothing(change):
    """Earlier samples stay the same, and every source continues where it was.

    Every window that was started before the change is served exactly once.
    """
    before, after, stage, samples = change
    for number in range(stage + 1):
        count = samples if number == stage else before.stages[number].samples
        old, new = (order.locate(number, np.arange(count)) for order in (before, after))
        for name in ("source", "epoch", "start"):
            assert np.array_equal(getattr(old, name), getattr(new, name))
    assert before.has_same_history(after, stage, samples)
    assert after.has_same_history(before, stage, samples)
    served: Counter[tuple[int, int, int]] = Counter()
    for number, source, epoch, start in everything(after):
        for unit in range(start // 8, (start + after.stages[number].seq_len) // 8):
            served[source, epoch, unit] += 1
    assert max(served.values()) == 1
    carried = len(after._remainders[stage + 1].source)
    if after.stages[stage + 1].samples >= carried:  # otherwise some are served later
        begun = after._first_atom[stage + 1] - after._first_atom[stage]
        total = samples * after.stages[stage].seq_len + carried * after.stages[stage + 1].seq_len
        assert total == begun.sum() * after.atom + carried_into(after, stage)


def carried_into(order: SampleOrder, stage: int) -> int:
    """Tokens that a stage took over from the one before it."""
    return len(order._remainders[stage].source) * order.stages[stage].seq_len


def test_a_change_that_rewrites_the_past_is_seen():
    sources = {"a": 10**6, "b": 10**6}
    stage = Stage(16, 30_000, {"a": 1, "b": 1})
    order = SampleOrder(sources, [stage, Stage(32, 100, {"a": 1})], 7)
    later = Stage(32, 100, {"b": 1})

    def past(new, samples=9000, number=0, tokens=sources, seed=7, atom=32):
        other = SampleOrder(tokens, [new, later], seed, atom=atom)
        return order.has_same_history(other, number, samples)

    assert past(stage)  # only what comes later is another
    assert past(replace(stage, samples=40_000))  # longer, and the window under way is whole
    assert past(replace(stage, samples=9216), samples=9000)  # ends with the window under way
    assert not past(replace(stage, samples=9000))  # its last window would be a smaller one
    assert not past(replace(stage, samples=8999))
    assert not past(replace(stage, weights={"a": 2, "b": 1}))
    assert not past(replace(stage, seq_len=32))
    assert not past(stage, seed=8)
    assert not past(stage, atom=64)
    assert not past(stage, tokens={"a": 10**6, "b": 10**6 + 1})
    assert not past(replace(stage, samples=40_000), samples=0, number=1)


def test_an_early_end_before_longer_sequences_must_be_at_a_window():
    sources = {"a": 10**7}
    longer = Stage(32, 500, {"a": 1})
    short = Stage(16, 1000, {"a": 1}, planned_samples=9000)
    with pytest.raises(
        InputError,
        match=r"\(32 tokens, not 16\)\. Set the stage's tokens to a multiple of 8192, or insert",
    ):
        SampleOrder(sources, [short, longer], 0)
    SampleOrder(sources, [replace(short, samples=1024), longer], 0)
    SampleOrder(sources, [short, replace(longer, seq_len=16), longer], 0)
    with pytest.raises(InputError, match="planned_samples=900: expected samples=1000 or more"):
        SampleOrder(sources, [replace(short, planned_samples=900)], 0)


def test_an_early_end_survives_json():
    order = SampleOrder({"a": 10**5}, [Stage(16, 100, {"a": 1}, 3000), Stage(8, 900, {"a": 1})], 0)
    again = SampleOrder.from_json(order.to_json())
    assert again.fingerprint == order.fingerprint
    assert np.array_equal(
        again.locate(1, np.arange(900)).start, order.locate(1, np.arange(900)).start
    )


def _before(order: SampleOrder, stage: int) -> int:
    return sum(s.samples for s in order.stages[:stage])


def test_editing_a_later_stage_leaves_the_past_alone():
    sources = {"a": 100_000, "b": 50_000}
    first = Stage(16, 1000, {"a": 1, "b": 1})
    one = SampleOrder(sources, [first, Stage(32, 500, {"a": 1})], 7)
    other = SampleOrder(sources, [first, Stage(8, 900, {"a": 0.2, "b": 0.8})], 7, atom=32)
    samples = np.arange(1000)
    assert np.array_equal(one.locate(0, samples).start, other.locate(0, samples).start)
    assert np.array_equal(one.locate(0, samples).source, other.locate(0, samples).source)
    assert one.fingerprint != other.fingerprint


def test_the_seed_and_the_names_decide():
    stage = Stage(16, 500, {"a": 1})
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
            Stage(2048, 3 * 10**8, {"web": 0.9, "code": 0.1}),
            Stage(16384, 6 * 10**6, {"web": 0.6, "code": 0.4}),
        ],
        0,
        max_epochs=1,
    )
    at = order.locate(1, np.array([0, 5_999_999]))
    assert (at.epoch == 0).all()
    assert sum(order.consumed(1, 6 * 10**6).values()) == 2048 * 3 * 10**8 + 16384 * 6 * 10**6


def test_too_many_epochs_are_refused_with_source_and_figures():
    stages = [Stage(16, 1000, {"a": 1, "b": 1})]
    with pytest.raises(
        InputError, match=r"max_epochs=4: the recipe reads source 'b' \(2,000 tokens\)"
    ):
        SampleOrder({"a": 100_000, "b": 2_000}, stages, 0, max_epochs=4)
    SampleOrder({"a": 100_000, "b": 2_000}, stages, 0, max_epochs={"a": 1, "b": 5})


def test_stages_that_do_not_fit_are_refused():
    with pytest.raises(InputError, match="24 tokens, which does not divide 32, the atom"):
        SampleOrder({"a": 9999}, [Stage(24, 5, {"a": 1}), Stage(32, 5, {"a": 1})], 0)
    with pytest.raises(InputError, match="source 'a' has 32 tokens, but at least 33"):
        SampleOrder({"a": 32}, [Stage(32, 1, {"a": 1})], 0)
    SampleOrder({"a": 33}, [Stage(32, 1, {"a": 1})], 0)


@pytest.mark.parametrize("sample", [-1, 10, 500])
def test_a_sample_outside_of_its_stage_is_refused(sample):
    """Beyond the last window there is no range to permute, and cycle walking would not end."""
    order = SampleOrder({"a": 9999}, [Stage(16, 10, {"a": 1})], 0)
    with pytest.raises(IndexError, match="stage 0 has samples 0 to 9, but samples"):
        order.locate(0, np.array([3, sample]))


def test_the_example_in_the_module_header():
    order = SampleOrder({"web": 17, "code": 9}, [Stage(2, 12, {"web": 2, "code": 1})], 0, atom=4)
    source, number = order._mixtures[0].locate(np.arange(6))
    atoms = 4 * order._epochs[0].locate(source, number)[1]
    located = order.locate(0, np.arange(12))

    def names(sources, starts):
        return [f"{order.sources[i][0]}{at}" for i, at in zip(sources, starts, strict=True)]

    pieces = np.add.outer(atoms, [0, 2]).ravel()
    header = " ".join(str(order_module.__doc__).split())
    for row in (
        [order.sources[index] for index in source],
        names(source, atoms),
        names(np.repeat(source, 2), pieces),
        names(located.source, located.start),
    ):
        assert " ".join(row) in header
