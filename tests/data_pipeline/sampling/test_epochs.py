"""Properties of epochs during which the corpus grows (I3)."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conf.errors import InputError
from data_pipeline.sampling import epochs as epochs_module
from data_pipeline.sampling.epochs import Epochs
from data_pipeline.sampling.order import SampleOrder
from data_pipeline.sampling.stage import Stage
from tests.data_pipeline.sampling.drawn import everything, orders

SOURCES = ("web", "code")


def all_of(epochs: Epochs, source: int, first: int, end: int) -> tuple[np.ndarray, np.ndarray]:
    return epochs.locate(np.full(end - first, source), np.arange(first, end))


@st.composite
def histories(draw):
    """Draws how two sources are served and grow: (served, atoms) at each growth, and the end."""
    served, atoms = [0, 0], [draw(st.integers(1, 40)), draw(st.integers(0, 9))]
    history = [(tuple(served), tuple(atoms))]
    for _ in range(draw(st.integers(1, 6))):
        more = [draw(st.integers(0, 90)) if size else 0 for size in atoms]
        served = [before + count for before, count in zip(served, more, strict=True)]
        atoms = [size + draw(st.sampled_from([0, 0, 1, 7, 60])) for size in atoms]
        history.append((tuple(served), tuple(atoms)))
    end = [n + 150 if size else 0 for n, size in zip(served, atoms, strict=True)]
    return draw(st.integers(0, 2**40)), history, end


@given(histories())
@settings(max_examples=70, deadline=None)
def test_every_epoch_serves_every_atom_once_and_the_past_stays(drawn):
    seed, history, end = drawn
    epochs = Epochs.of(seed, SOURCES, history[0][1])
    snapshots = []
    for served, atoms in history[1:]:
        snapshots.append((epochs, served))
        epochs = epochs.grown(np.array(served), atoms)
    for source, stop in enumerate(end):
        if not stop:
            continue
        epoch, atom = all_of(epochs, source, 0, stop)
        assert (np.diff(epoch) >= 0).all()
        assert set(np.diff(epoch)) <= {0, 1}
        for number in range(epoch[-1]):  # every epoch but the last is complete
            served = atom[epoch == number]
            assert np.array_equal(np.sort(served), np.arange(len(served)))
        last = atom[epoch == epoch[-1]]
        assert len(set(last.tolist())) == len(last)
        assert atom.max() < history[-1][1][source]
        assert np.array_equal(epochs.number(source, epoch, atom), np.arange(stop))
        for before, served_then in snapshots:  # a later growth changes nothing that was served
            if served_then[source]:
                then = all_of(before, source, 0, served_then[source])
                assert np.array_equal(then, np.stack((epoch, atom))[:, : served_then[source]])


@given(histories())
@settings(max_examples=40, deadline=None)
def test_what_was_added_is_served_before_anything_repeats(drawn):
    """After a growth, all atoms of the source are in the current epoch, whatever was served."""
    seed, history, _ = drawn
    epochs = Epochs.of(seed, SOURCES, history[0][1])
    for (_, before), (served, atoms) in itertools.pairwise(history):
        epochs = epochs.grown(np.array(served), atoms)
        for source, count in enumerate(served):
            if not count or before[source] == atoms[source]:
                continue
            current, _ = all_of(epochs, source, count - 1, count)
            epoch, atom = all_of(epochs, source, 0, count + atoms[source])
            served_now = atom[epoch == current[0]]
            assert np.array_equal(np.sort(served_now), np.arange(atoms[source]))


def test_an_atom_that_an_epoch_does_not_have_is_not_found():
    epochs = Epochs.of(3, SOURCES, [4, 2]).grown(np.array([9, 0]), [7, 2])
    # Epochs 0 and 1 had 4 atoms, and epoch 2 grew to 7 after one.
    found = epochs.number(0, np.array([0, 1, 2, 3]), np.full(4, 6))
    assert found[0] == found[1] == -1
    assert 9 <= found[2] < 15 <= found[3] < 22


def test_passes_count_the_epochs_of_the_edition():
    epochs = Epochs.of(0, SOURCES, [10, 5])
    assert epochs.passes([250, 50], 10) == [2.5, 1.0]
    grown = epochs.grown(np.array([25, 5]), [40, 5])
    assert grown.passes([250, 50], 10) == [2 + 5 / 40, 1.0]
    assert grown.passes([200 + 400 + 100, 75], 10) == [3.25, 1.5]
    exact = Epochs.of(0, SOURCES, [10, 5]).grown(np.array([10, 5]), [20, 5])
    assert exact.passes([100, 50], 10) == [0.5, 1.0]  # the first epoch continues with what is new


def test_the_example_in_the_module_header():
    epochs = Epochs.of(0, ["a"], [4])
    grown = epochs.grown(np.array([2]), [7])
    text = " ".join(str(epochs_module.__doc__).split()).replace("|", "")
    for name, found, count in (("before", epochs, 4), ("after", grown, 7)):
        atoms = " ".join(f"a{atom}" for atom in all_of(found, 0, 0, count)[1])
        assert f"{name} {atoms}" in " ".join(text.split())


@given(orders(ended_early=True, grown=True))
@settings(max_examples=60, deadline=None)
def test_earlier_stages_do_not_depend_on_later_ones(order):
    """Neither do they depend on whether the corpus grows for a later stage."""
    last = len(order.stages) - 1
    if not last:
        return
    before = [*order.stages[:-2], replace(order.stages[-2], planned_samples=None)]
    if order.stages[-2].planned_samples is not None:
        before[-1] = order.stages[-2]
    shorter = SampleOrder(order.source_tokens, before, order.seed, atom=order.atom)
    names = [(stage, order.sources[source], *at) for stage, source, *at in everything(order)]
    theirs = [(stage, shorter.sources[source], *at) for stage, source, *at in everything(shorter)]
    assert names[: len(theirs)] == theirs
    samples = shorter.stages[-1].samples
    assert shorter.has_same_history(order, last - 1, samples)
    assert order.has_same_history(shorter, last - 1, samples)


def test_a_corpus_that_has_grown_is_another_history_for_a_stage_that_read_it():
    base, larger, largest = {"a": 5000}, {"a": 9000, "b": 700}, {"a": 9500, "b": 700}
    first, second = Stage(16, 100, {"a": 1}), Stage(16, 100, {"a": 1, "b": 1})

    def order(*sizes):
        stages = [first, *(replace(second, source_tokens=size) for size in sizes)]
        return SampleOrder(base, stages, 7, atom=32)

    here = order(larger)
    assert here.sources == ("a", "b")
    assert here.has_same_history(SampleOrder(base, [first], 7, atom=32), 0, 100)
    assert here.has_same_history(order(larger, largest), 1, 50)
    assert not here.has_same_history(order(largest), 1, 50)
    assert here.has_same_history(order(largest), 0, 100)


def test_a_stage_that_reads_less_than_the_one_before_is_refused():
    stages = [Stage(16, 9, {"a": 1}, source_tokens={"a": 900}), Stage(16, 9, {"a": 1})]
    with pytest.raises(
        InputError, match=r"stage 1 .* reads 800 tokens of source 'a', fewer than the 900"
    ):
        SampleOrder({"a": 800}, stages, 0)


def test_max_epochs_counts_with_the_edition_of_the_stage():
    read = Stage(16, 100, {"a": 1})
    grown = Stage(16, 500, {"a": 1}, source_tokens={"a": 8001})
    SampleOrder({"a": 801}, [read, grown], 0, max_epochs=2.2)
    with pytest.raises(InputError, match=r"reads source 'a' \(801 tokens\) 2\.00 times"):
        SampleOrder({"a": 801}, [read, grown], 0, max_epochs=1.9)
    with pytest.raises(InputError, match=r"reads source 'a' \(8,001 tokens\) 2\.10 times"):
        SampleOrder({"a": 801}, [read, grown], 0, max_epochs=2.05)


def test_orders_without_growth_are_what_they_were():
    """The order of a run must not change from one version to the next."""
    stages = [
        Stage(16, 700, {"a": 1, "b": 0.5}, 900),
        Stage(8, 3000, {"a": 0.3, "b": 1, "c": 0}),
        Stage(32, 2000, {"b": 1, "a": 1}),
    ]
    order = SampleOrder({"a": 40000, "b": 9000, "c": 100}, stages, 5, atom=32)
    assert order.fingerprint == "f64785105ea2b9879aa77f81e1a8303363f2adf2f6c742047f0e7cb91227f703"
    assert [order.locate(n, np.arange(6)).start.tolist() for n in range(3)] == [
        [3120, 1280, 1296, 33328, 16048, 15968],
        [3472, 3480, 36784, 36792, 4176, 4184],
        [1536, 3328, 6624, 10560, 1184, 16416],
    ]
