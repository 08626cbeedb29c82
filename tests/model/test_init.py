"""Initial values depend on the seed and the name alone."""

import math

import torch

from model.config import ModelConfig
from model.init import initial_value
from model.network import Decoder
from tests.model.shapes import initialize, tiny


def values(config: ModelConfig, seed: int) -> dict[str, torch.Tensor]:
    model = Decoder(config)
    initialize(model, config, seed)
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def test_a_seed_gives_the_same_bits_and_another_seed_others():
    first, again, other = values(tiny(), 1), values(tiny(), 1), values(tiny(), 2)
    for name, value in first.items():
        assert torch.equal(value, again[name])
        if value.ndim > 1:
            assert not torch.equal(value, other[name])


def test_one_layer_more_changes_no_other_value():
    few, many = values(tiny(num_layers=2), 0), values(tiny(num_layers=3), 0)
    assert all(torch.equal(value, many[name]) for name, value in few.items())


def test_the_schemes_have_the_stated_deviation():
    config = tiny(init="scaled_residual", initializer_range=0.05, num_layers=8)
    shape = torch.Size((400, 400))
    plain = initial_value("layers.0.mlp.up_proj.weight", shape, config, 0)
    scaled = initial_value("layers.0.mlp.down_proj.weight", shape, config, 0)
    assert math.isclose(plain.std().item(), 0.05, rel_tol=0.02)
    assert math.isclose(scaled.std().item(), 0.05 / 4, rel_tol=0.02)
    assert torch.equal(initial_value("norm.weight", torch.Size((5,)), config, 0), torch.ones(5))
