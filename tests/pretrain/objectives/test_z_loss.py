"""z-loss against plain torch, and on every kind of layout."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from conf.errors import InputError
from data_pipeline.sampling.batches import IGNORED, Batch
from model.network import Decoder
from pretrain.checkpoints import read
from pretrain.objectives import build_objective
from tests.model.shapes import tiny
from tests.runs import arguments, records

CHANGES: dict[str, Any] = {
    "model__num_heads": 4,
    "model__num_kv_heads": 2,
    "recipe__stages__long__tokens": 2048,
    "recipe__stages__short__tokens": 10240,
    "checkpoint__every_steps": 0,
    "validation__every_steps": 0,
}
"""6 steps."""
LAYOUTS = {"fsdp2": {"dp_shard": 2}, "tp2": {"tp": 2}, "cp2": {"cp": 2}}


def test_loss_and_gradients_equal_plain_torch():
    config = tiny(vocab_size=256)
    torch.manual_seed(0)
    model = Decoder(config)
    tokens = torch.randint(0, 256, (3, 32))
    labels = tokens.roll(-1, 1)
    labels[:, ::5] = IGNORED
    batch = Batch(tokens, labels, torch.arange(0, 97, 32, dtype=torch.int32), np.arange(3))
    objective = build_objective({"name": "z_loss", "coefficient": 0.01})

    loss, by_sample, (z_loss,) = objective(model, batch)
    ours = torch.autograd.grad(loss, list(model.parameters()))

    logits = model(tokens)
    entropy = F.cross_entropy(logits.transpose(1, 2), labels, reduction="none")
    penalty = 0.01 * logits.logsumexp(-1).square() * (labels != IGNORED)
    theirs = torch.autograd.grad((entropy + penalty).sum(), list(model.parameters()))
    torch.testing.assert_close(loss, (entropy + penalty).sum())
    torch.testing.assert_close(by_sample, entropy.sum(1))
    torch.testing.assert_close(z_loss, penalty.sum())
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def train(warm, corpus, folder, objective, **layout):
    changes = CHANGES | objective | {f"parallel__{name}": size for name, size in layout.items()}
    ranks = layout.get("dp_shard", 1) * layout.get("tp", 1) * layout.get("cp", 1)
    ended = warm.run(arguments(corpus.folder, folder, **changes), ranks, folder.parent)
    assert set(ended.codes) == {0}, ended.said
    return folder


Z_LOSS = {"objective": "z_loss", "objective__coefficient": 0.01}


@pytest.fixture(scope="module")
def single(warm, corpus, tmp_path_factory):
    return train(warm, corpus, tmp_path_factory.mktemp("single") / "run", Z_LOSS, dp_shard=1)


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_layout_takes_the_steps_of_one_process(layout, single, warm, corpus, tmp_path):
    found = train(warm, corpus, tmp_path / "run", Z_LOSS, **LAYOUTS[layout])
    ours, theirs = records(found), records(single)
    assert len(ours) == len(theirs) == 6
    for key in ("loss", "z_loss", "grad_norm"):
        assert [r[key] for r in ours] == pytest.approx([r[key] for r in theirs], rel=1e-4)
    weights = dict(read.weights(single / "checkpoints" / "step_6"))
    for name, value in read.weights(found / "checkpoints" / "step_6"):
        assert torch.dist(value, weights[name]) < 1e-4 * weights[name].norm()


@pytest.mark.slow
def test_z_loss_shrinks_the_normalizer_and_stays_out_of_the_recorded_loss(
    single, warm, corpus, tmp_path
):
    plain = train(warm, corpus, tmp_path / "run", {}, dp_shard=1)
    ours, theirs = records(single), records(plain)
    assert ours[0]["loss"] == pytest.approx(theirs[0]["loss"], rel=1e-6)  # the same weights
    assert ours[0]["z_loss"] == pytest.approx(0.01 * 5.56**2, rel=0.1)  # log(260) squared
    assert ours[-1]["z_loss"] < 0.9 * ours[0]["z_loss"]
    assert "z_loss" not in theirs[0]
    (first, *_), (other, *_) = records(single, "validation"), records(plain, "validation")
    assert first["loss"] == other["loss"]


def test_a_bad_coefficient_is_refused():
    with pytest.raises(InputError, match=r"objective\.coefficient=-1.*0 or more"):
        build_objective({"name": "z_loss", "coefficient": -1})
    with pytest.raises(InputError, match=r"coefficient=high: expected a value of type float"):
        build_objective({"name": "z_loss", "coefficient": "high"})
    with pytest.raises(InputError, match=r"objective\.coeficient=1: .*did you mean 'coefficient'"):
        build_objective({"name": "z_loss", "coeficient": 1})
