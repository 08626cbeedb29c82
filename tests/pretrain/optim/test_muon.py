"""Muon against torch's own on whole weights."""

from __future__ import annotations

import pytest
import torch

from model.network import Decoder
from pretrain.config import OptimConfig
from pretrain.optim import build_optimizer
from pretrain.optim.newton_schulz import orthogonalized, polynomials
from tests.model.shapes import tiny


@pytest.mark.parametrize(
    ("coefficients", "lowest", "highest"), [("jordan", 0.3, 1.3), ("polar_express", 0.8, 1.15)]
)
@pytest.mark.parametrize("shape", [(32, 64), (64, 32), (48, 48)])
def test_singular_values_come_near_one(coefficients, lowest, highest, shape):
    matrices = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0))
    found = orthogonalized(matrices, polynomials(coefficients, 5))
    values = torch.linalg.svdvals(found)
    assert values.min() > lowest
    assert values.max() < highest
    left, _, right = torch.linalg.svd(matrices, full_matrices=False)
    exact = left @ right
    assert (found - exact).norm() < (0.3 if coefficients == "jordan" else 0.2) * exact.norm()


def test_more_steps_of_polar_express_come_nearer():
    values = torch.logspace(-3, 0, 500, dtype=torch.float64)
    worst = []
    for steps in (4, 5, 6, 8):
        found = values / values.max()
        for a, b, c in polynomials("polar_express", steps):
            found = a * found + b * found**3 + c * found**5
        worst.append(float((found - 1).abs().max()))
    assert worst == sorted(worst, reverse=True)
    assert worst[1] < 0.16  # the paper's 0.12, and its margin for rounding
    assert worst[3] < 1e-5


def orthogonal(matrix, steps):
    return orthogonalized(matrix[None], polynomials("jordan", steps))[0]


def test_a_step_is_torchs(monkeypatch):
    monkeypatch.setattr(  # torch's iterates in bfloat16
        torch.optim._muon,
        "_zeropower_via_newtonschulz",
        lambda gradient, coefficients, steps, eps: orthogonal(gradient, steps),
    )
    torch.manual_seed(0)
    ours = torch.nn.Parameter(torch.randn(24, 40))
    theirs = torch.nn.Parameter(ours.detach().clone())
    model = torch.nn.Module()
    model.layers = torch.nn.Linear(40, 24, bias=False)
    model.layers.weight = ours
    config = OptimConfig(name="muon", learning_rate=0.02, weight_decay=0.1)
    optimizer = build_optimizer(model, config)
    other = torch.optim.Muon([theirs], lr=0.02, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    for _ in range(5):
        gradient = torch.randn(24, 40)
        ours.grad, theirs.grad = gradient.clone(), gradient.clone()
        optimizer.step()
        other.step()
        torch.testing.assert_close(ours, theirs)


def test_hooks_of_a_step_run_once_where_an_adamw_was_built_too():
    model = Decoder(tiny())
    build_optimizer(model, OptimConfig(learning_rate=0.1))
    optimizer = build_optimizer(model, OptimConfig(name="muon", learning_rate=0.1))
    called = []
    optimizer.register_step_pre_hook(lambda *_: called.append("before"))
    optimizer.register_step_post_hook(lambda *_: called.append("after"))
    before = model.norm.weight.detach().clone()
    model(torch.zeros(1, 4, dtype=torch.long)).sum().backward()
    optimizer.step()
    assert called == ["before", "after"]
    assert not torch.equal(model.norm.weight, before)  # AdamW's part of the step was done


def test_groups():
    config = OptimConfig(name="muon", learning_rate=0.1, weight_decay=0.3)
    model = Decoder(tiny())
    optimizer = build_optimizer(model, config)
    names = {id(p): name for name, p in model.named_parameters()}
    found = {
        (group["muon"], group["weight_decay"]): {names[id(p)] for p in group["params"]}
        for group in optimizer.param_groups
    }
    assert found[False, 0.3] == {"lm_head.weight"}
    assert all("_proj" in name for name in found[True, 0.3])
    assert len(found[True, 0.3]) == 7 * len(model.layers)
    assert "embed_tokens.weight" in found[False, 0.0]
    assert all("norm" in name or "embed" in name for name in found[False, 0.0])
