"""The choice of micro-batches to capture and replay; tests/hollow captures them with torch."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from data_pipeline.sampling.batches import Batch
from pretrain.parallel import cuda_graphs
from pretrain.parallel.cuda_graphs import CudaGraphs, kind_of


def batch(value=0, seq=4):
    return Batch(
        tokens=torch.full((1, seq), value),
        labels=torch.full((1, seq), value),
        cu_seqlens=torch.tensor([0, seq], dtype=torch.int32),
        samples=np.array([value]),
        sources=torch.zeros(1, dtype=torch.int64),
    )


class Replayed(CudaGraphs):
    """Graphs whose replay runs the function on the captured batch."""

    def __init__(self, model, run):
        super().__init__(model, run)
        self.captured, self.seen = [], []

    def _capture(self, batch, weight):
        self.captured.append((kind_of(batch), weight))
        static = replace(batch, tokens=batch.tokens.clone())
        graph: Any = SimpleNamespace(replay=lambda: self.run(static, weight))
        return cuda_graphs._Captured(graph, static, (static.tokens,))


@pytest.fixture
def graphs():
    model = torch.nn.Linear(1, 1, bias=False)

    def run(batch, weight):
        made.seen.append(int(batch.tokens[0, 0]))
        (model.weight.sum() * batch.tokens[0, 0] * weight).backward()
        return (batch.tokens,)

    made = Replayed(model, run)
    return made


def test_a_kind_is_captured_at_its_second_batch_and_gets_the_inputs_of_each(graphs):
    for value in (1, 2, 3):
        (tokens,) = graphs(batch(value), 1.0, value == 1, "a")
        assert tokens[0, 0] == value
    assert graphs.seen == [1, 2, 3]
    assert len(graphs.captured) == 1
    graphs(batch(4, seq=8), 1.0, False, "a")
    assert len(graphs.captured) == 1  # another shape: its first batch runs without a graph
    graphs(batch(5), 0.5, False, "a")
    graphs(batch(6), 0.5, False, "a")
    assert [weight for _, weight in graphs.captured] == [1.0, 0.5]


def test_gradients_of_a_step_keep_their_address_and_start_at_zero(graphs):
    weight = graphs.model.weight
    addresses = set()
    for _ in range(3):
        graphs(batch(2), 1.0, True, "a")
        graphs(batch(3), 1.0, False, "a")
        assert weight.grad == 5
        addresses.add(weight.grad.data_ptr())
        weight.grad = None  # as an optimizer does
    assert len(addresses) == 1


def test_a_stage_has_graphs_of_its_own_and_only_so_many(graphs, monkeypatch):
    for stage in ("a", "b"):
        for _ in range(3):
            graphs(batch(1), 1.0, False, stage)
    assert len(graphs.captured) == 2
    monkeypatch.setattr(cuda_graphs, "MAX_GRAPHS", 2)
    for seq in (5, 6, 7):
        for _ in range(3):
            graphs(batch(1, seq), 1.0, False, "b")
    assert len(graphs.captured) == 3


def test_numbers_that_only_records_use_are_not_part_of_a_kind():
    assert kind_of(batch(1)) == kind_of(batch(2))
    assert kind_of(batch(1)) != kind_of(batch(1, seq=8))
