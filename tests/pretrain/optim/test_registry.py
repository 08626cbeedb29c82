"""The registry of optimizers, their options, and the parameter groups."""

from __future__ import annotations

import pytest
import torch
import torch.distributed.checkpoint as dcp

from conf.errors import InputError
from model.network import Decoder
from pretrain.checkpoints import read
from pretrain.checkpoints.staging import state_of
from pretrain.config import OptimConfig, ParameterGroupConfig
from pretrain.optim import (
    OPTIMIZERS,
    build_optimizer,
    check_optimizer,
    optimizer_of,
    options_of,
    parameter_groups,
    with_all_options,
)
from tests.model.shapes import tiny

RATE = 0.1


def dimensions(model):
    return {name: parameter.ndim for name, parameter in model.named_parameters()}


def take_step(model, optimizer):
    model(torch.arange(8).view(1, 8)).square().mean().backward()
    for group in optimizer.param_groups:
        group["lr"] = RATE * group["lr_scale"]
    optimizer.step()
    optimizer.zero_grad()


def test_groups_by_glob_the_first_match_wins():
    groups = {
        "embeddings": ParameterGroupConfig("embed_tokens.*", 0.5, 0.3),
        "first": ParameterGroupConfig("layers.0.*", 0.25),
        "norms": ParameterGroupConfig("*norm*", weight_decay=0.2),
    }
    config = OptimConfig(learning_rate=RATE, weight_decay=0.1, groups=groups)
    model = Decoder(tiny())
    check_optimizer(config, dimensions(model))
    found = {
        name: (group.lr_scale, group.weight_decay)
        for group in parameter_groups(model, config)
        for name in group.parameters
    }
    assert sorted(found) == sorted(dimensions(model))
    assert found["embed_tokens.weight"] == (0.5, 0.3)
    assert found["lm_head.weight"] == (1.0, 0.1)
    assert found["norm.weight"] == (1.0, 0.2)
    in_first = {name: value for name, value in found.items() if name.startswith("layers.0.")}
    assert {value for name, value in in_first.items() if "norm" in name} == {(0.25, 0.0)}
    assert {value for name, value in in_first.items() if "norm" not in name} == {(0.25, 0.1)}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_scale_of_zero_keeps_the_parameters(name):
    torch.manual_seed(0)
    model = Decoder(tiny())
    frozen = {"first": ParameterGroupConfig("layers.0.*", lr_scale=0.0)}
    optimizer = build_optimizer(model, OptimConfig(name=name, learning_rate=RATE, groups=frozen))
    before = {key: value.detach().clone() for key, value in model.named_parameters()}
    take_step(model, optimizer)
    for key, value in model.named_parameters():
        assert torch.equal(value, before[key]) == key.startswith("layers.0."), key


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_state_is_what_the_registry_states(name):
    model = Decoder(tiny())
    optimizer = build_optimizer(model, OptimConfig(name=name, learning_rate=RATE))
    take_step(model, optimizer)
    state_bytes = optimizer_of(name).state_bytes
    for key, parameter in model.named_parameters():
        state = optimizer.state[parameter]
        held = sum(value.nbytes for what, value in state.items() if what != "step")
        assert held == state_bytes(key, parameter.shape, parameter.numel()), key


def test_settings_are_of_the_config_and_state_of_the_checkpoint(tmp_path):
    """Groups may be added to a run that has checkpoints."""
    torch.manual_seed(0)
    model = Decoder(tiny())
    optimizer = build_optimizer(model, OptimConfig(name="muon", learning_rate=RATE))
    take_step(model, optimizer)
    saved = state_of(model, optimizer)
    dcp.save(saved, checkpoint_id=tmp_path)
    other = Decoder(tiny())
    groups = {"embeddings": ParameterGroupConfig("embed_tokens.*", 0.5, 0.3)}
    config = OptimConfig(name="muon", learning_rate=RATE, weight_decay=0.2, groups=groups)
    loaded = build_optimizer(other, config)
    read.load(tmp_path, other, loaded)
    for (key, ours), theirs in zip(model.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(ours, theirs), key
        for what, value in optimizer.state[ours].items():
            assert torch.equal(value, loaded.state[theirs][what]), (key, what)
    settings = {(group["lr_scale"], group["weight_decay"]) for group in loaded.param_groups}
    assert settings == {(0.5, 0.3), (1.0, 0.2), (1.0, 0.0)}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "moun"}, "optim.name=moun: unknown choice (did you mean 'muon'?)."),
        (
            {"options": {"momentum": 0.9}},
            "optim.options.momentum=0.9: unknown option (there are no options)",
        ),
        (
            {"name": "muon", "options": {"ns_step": 4}},
            "optim.options.ns_step=4: unknown option (did you mean 'ns_steps'?).",
        ),
        (
            {"name": "muon", "options": {"ns_steps": 4.5}},
            "optim.options.ns_steps=4.5: expected a value of type int.",
        ),
        (
            {"groups": {"heads": ParameterGroupConfig("head.*")}},
            "optim.groups.heads.match=head.*: this glob matches no parameter",
        ),
        (
            {"groups": {"a": ParameterGroupConfig("*"), "b": ParameterGroupConfig("layers.*")}},
            "optim.groups.b.match=layers.*: earlier groups contain all parameters",
        ),
        (
            {"groups": {"a": ParameterGroupConfig("*", lr_scale=-1.0)}},
            "optim.groups.a.lr_scale=-1.0: expected 0 or more.",
        ),
    ],
)
def test_what_is_refused(changes, message):
    config = OptimConfig(learning_rate=RATE, **changes)
    with pytest.raises(InputError) as refused:
        check_optimizer(config, dimensions(Decoder(tiny())))
    assert message in str(refused.value)


def test_all_options_are_recorded():
    config = with_all_options(OptimConfig(name="muon", learning_rate=RATE, options={"ns_steps": 4}))
    assert config.options == {
        "momentum": 0.95,
        "ns_steps": 4,
        "ns_coefficients": "jordan",
    }
    assert options_of(config).ns_steps == 4
