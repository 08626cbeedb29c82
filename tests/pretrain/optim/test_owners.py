"""The assignment of matrices to ranks and rounds, without any other rank."""

from __future__ import annotations

import pytest
import torch

from pretrain.optim import is_block_matrix, owners
from pretrain.optim.newton_schulz import flops
from pretrain.planning.memory import parameter_shapes
from tests.model.test_counts import load


@pytest.mark.parametrize(("ranks", "most"), [(1, 1.0), (8, 1.01), (64, 1.4)])
def test_the_work_is_balanced_at_danubes_size(ranks, most):
    shapes = parameter_shapes(load("danube_1_8b"))
    costs = [flops(s[0], s[1], 5) for name, s in shapes.items() if is_block_matrix(name, len(s))]
    costs.sort(reverse=True)
    work = [0] * ranks
    for cost, owner in zip(costs, owners.assign(costs, ranks), strict=True):
        work[owner] += cost
    assert sum(work) == sum(costs)
    assert max(work) <= most * sum(costs) / ranks


def test_rounds_are_of_one_shape_and_of_limited_size(monkeypatch):
    monkeypatch.setattr(owners, "ROUND_ELEMENTS", 100)
    matrices = [torch.randn(shape) for shape in [(4, 8), (8, 8), (8, 4), (4, 8), (4, 8), (4, 8)]]
    found = owners.rounds(matrices, lambda rows, columns: rows * columns)
    assert [(r.shape, len(r.parameters)) for r in found] == [
        ((8, 8), 1),
        ((4, 8), 3),
        ((4, 8), 1),
        ((8, 4), 1),
    ]
    assert {id(p) for r in found for p in r.parameters} == {id(m) for m in matrices}
    for one in found:
        flat = torch.cat([p.reshape(-1) for p in one.parameters])
        assert torch.equal(one.whole(one.gather(flat).wait()), torch.stack(one.parameters))
