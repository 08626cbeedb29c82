"""All ranks of a run together read the same samples in any layout, also after a restart."""

from __future__ import annotations

import threading
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from conf.errors import InputError
from data_pipeline.sampling.batches import IGNORED, BatchReader
from data_pipeline.sampling.order import SampleOrder
from data_pipeline.sampling.recipe import RecipeConfig, StageConfig, StagePlan
from pretrain import loader as loader_module
from pretrain.loader import MASK64, Loader, attended_keys, sample_digest
from tests.patience import limit
from tests.sealed import sealed

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def manifest(corpus, tmp_path_factory):
    return sealed(corpus, tmp_path_factory.mktemp("loader") / "c")


def make_plan(manifest, stages, batch=4096, seed=0):
    """Returns a plan and a reader of its samples."""
    plan = StagePlan(RecipeConfig("r", batch, stages), manifest.source_tokens("train"))
    order = SampleOrder(manifest.source_tokens("train"), plan.stages, seed)
    return plan, BatchReader(manifest, order)


@st.composite
def runs(draw):
    """Stages, seed, and layouts: (data-parallel ranks, sequences in a micro-batch, prefetch)."""
    sizes = [16, 32, 64]
    stages = {}
    for number in range(draw(st.integers(1, 3))):
        mixture = {
            "code": draw(st.sampled_from([0.2, 1.0])),
            "prose": draw(st.sampled_from([0, 1])),
        }
        tokens = 4096 * draw(st.integers(1, 4))
        planned = tokens + 4096 * draw(st.integers(1, 9)) if draw(st.booleans()) else None
        if planned and number < 2:
            sizes = [
                n for n in sizes if n <= sizes[0]
            ]  # the next stage must not have longer sequences
        stages[f"s{number}"] = StageConfig(
            sizes[0] if planned else draw(st.sampled_from(sizes)), tokens, mixture, planned
        )
        sizes = [n for n in sizes if n <= stages[f"s{number}"].seq_len] if planned else sizes
    ranks = st.sampled_from([1, 2, 3, 4, 5, 7, 8, 16, 64, 300])
    layouts = draw(st.lists(st.tuples(ranks, st.integers(0, 5), st.integers(0, 4)), min_size=2))
    return stages, draw(st.integers(0, 2**31)), layouts[:3], draw(st.integers(0, 10**6))


@given(runs())
@settings(max_examples=25, deadline=None)
def test_the_stream_is_the_same_for_any_layout_and_restart_and_repeats_nothing(manifest, run):
    """Runs that change their layout at random steps, as restarts on other machines do."""
    stages, seed, layouts, cut = run
    plan, reader = make_plan(manifest, stages, seed=seed)
    served: Counter[tuple[int, int, int]] = Counter()
    switch = [(cut // 7**n) % (plan.total_steps + 1) for n in range(len(layouts) - 1)]
    borders = [0, *sorted(switch), plan.total_steps]
    for (ranks, micro_power, prefetch), first, end in zip(
        layouts, borders[:-1], borders[1:], strict=True
    ):
        micro = max(stage.seq_len for stage in plan.stages) << micro_power
        loaders = [
            Loader(reader, plan, rank, ranks, micro, [None], CPU, prefetch) for rank in range(ranks)
        ]
        for step in range(first, end):
            stage = plan.at(step)
            samples = np.array(plan.samples_at(step))
            expected = reader.read(stage.index, samples)
            data = [loader.get(step) for loader in loaders]
            batches = [batch for part in data for batch in part.micro_batches]
            assert np.array_equal(np.concatenate([b.samples for b in batches]), samples)
            assert len({len(part.micro_batches) for part in data}) == 1
            assert len({b.tokens.shape for b in batches}) == 1
            real = [(b.tokens[: len(b.samples)], b.labels[: len(b.samples)]) for b in batches]
            assert torch.equal(torch.cat([tokens for tokens, _ in real]), expected.tokens)
            assert torch.equal(torch.cat([labels for _, labels in real]), expected.labels)
            assert all((b.labels[len(b.samples) :] == IGNORED).all() for b in batches)
            keys, digest, *counts = np.sum([part.counts for part in data], axis=0)
            assert int(digest) & MASK64 == sample_digest(expected) & MASK64
            assert keys == attended_keys(expected.cu_seqlens, None)
            at = reader.order.locate(stage.index, samples)
            found = (expected.labels.numpy() != IGNORED).sum(axis=1)
            targets = [int(found[at.source == n].sum()) for n in range(2)]
            assert counts == [*targets, *expected.documents.tolist()]
            for source, epoch, start in zip(at.source, at.epoch, at.start, strict=True):
                for unit in range(start // 16, (start + stage.seq_len) // 16):
                    served[source, epoch, unit] += 1
        for loader in loaders:
            loader.close()
    assert max(served.values()) == 1


def test_documents_are_counted_where_they_end(manifest):
    plan, reader = make_plan(manifest, {"a": StageConfig(64, 81920)})
    loader = Loader(reader, plan, 0, 1, 512, [None], CPU)
    counted = torch.stack([loader.get(step).counts for step in range(20)]).sum(dim=0)
    at = reader.order.locate(0, np.arange(1280))
    ends = [0, 0]
    for source, stream in enumerate(reader.streams):
        starts = at.start[at.source == source]
        tokens = np.empty((len(starts), 64), np.int64)
        stream.read(starts, tokens, np.arange(len(starts)))
        ends[source] = int((tokens == 2).sum())
    assert counted[4:].tolist() == ends
    loader.close()


def test_so_many_steps_are_read_ahead_and_no_more(manifest, monkeypatch):
    plan, reader = make_plan(manifest, {"a": StageConfig(64, 40960)})
    read, gate = [], threading.Semaphore(0)

    class Counting(Loader):
        def _read(self, step):
            gate.acquire(timeout=limit(20))
            read.append(step)
            return super()._read(step)

    loader = Counting(reader, plan, 0, 1, 512, [None], CPU, prefetch_steps=3)
    for _ in range(4):
        gate.release()
    loader.get(0)
    loader_module.wait(loader._prefetched.values(), limit(20))
    assert sorted(read) == [0, 1, 2, 3]
    assert sorted(loader._prefetched) == [1, 2, 3]
    gate.release()
    loader.get(1)
    loader_module.wait(loader._prefetched.values(), limit(20))
    assert sorted(read) == [0, 1, 2, 3, 4]
    for _ in range(9):
        gate.release()
    loader.get(7)  # after a rewind or a jump
    assert sorted(loader._prefetched) == [8, 9]
    loader.get(9)
    assert not loader._prefetched
    loader.close()


def test_a_damaged_shard_ends_the_step_that_reads_it(corpus, tmp_path):
    """The error is raised for prefetched data too, and printed by every rank that reads it."""
    manifest = sealed(corpus, tmp_path / "c")
    plan, reader = make_plan(manifest, {"a": StageConfig(64, 102_400)})
    path = manifest.folder / "train/prose-00001.bin"
    content = bytearray(path.read_bytes())
    content[1000] ^= 1
    path.write_bytes(content)
    loader = Loader(reader, plan, 0, 1, 512, [None], CPU)
    with pytest.raises(InputError, match=r"prose-00001\.bin: checksum mismatch") as caught:
        list(map(loader.get, range(25)))
    assert caught.value.every_rank
    loader.close()


def test_a_loader_is_ahead_of_a_slower_trainer(manifest):
    """The data of a step is ready once the step before it has trained for long enough."""
    plan, reader = make_plan(manifest, {"a": StageConfig(64, 40960)})
    loader = Loader(reader, plan, 0, 1, 512, [None], CPU)
    for step in range(10):
        there = step > 0 and loader._prefetched[step].done()
        assert there == (step > 0)
        assert loader.get(step).wait_seconds >= 0
        # The step trains for longer than this.
        loader_module.wait(loader._prefetched.values(), limit(20))
    loader.close()
