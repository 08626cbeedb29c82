"""Muon against torch's own on whole weights."""

from __future__ import annotations

import torch

from model.network import Decoder
from pretrain.config import OptimConfig
from pretrain.optim import build_optimizer
from pretrain.optim.muon import orthogonal
from tests.model.shapes import tiny


def test_singular_values_come_near_one():
    generator = torch.Generator().manual_seed(0)
    for shape in ((32, 64), (64, 32), (48, 48)):
        values = torch.linalg.svdvals(orthogonal(torch.randn(shape, generator=generator), 5))
        assert values.min() > 0.3
        assert values.max() < 1.3


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
