"""Learning rates, weight decays and epsilons of CompleteP, for AdamW and Muon."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from model.network import Decoder
from model.parametrization import parametrization_of
from pretrain.config import OptimConfig, ParameterGroupConfig
from pretrain.optim import build_optimizer, parameter_groups
from tests.model.shapes import initialize, tiny

WIDER = tiny(parametrization="completep", base_hidden_size=24, base_num_layers=1)
"""Four times the width and three times the depth of its base model."""


def settings(config: OptimConfig) -> dict[str, tuple[float, float, float]]:
    groups = parameter_groups(Decoder(WIDER), config, parametrization_of(WIDER))
    return {
        name: (group.lr_scale, group.weight_decay, group.eps)
        for group in groups
        for name in group.parameters
    }


@pytest.mark.parametrize(("name", "factor"), [("adamw", 4), ("muon", 2), ("normuon", 2)])
def test_settings_by_group(name, factor):
    found = settings(OptimConfig(name=name, learning_rate=0.1, weight_decay=0.3, eps=12e-6))
    for layer in range(3):
        for part in ("self_attn.q_proj", "self_attn.o_proj", "mlp.up_proj", "mlp.down_proj"):
            matrix = found[f"layers.{layer}.{part}.weight"]
            assert matrix == pytest.approx((1 / factor, 0.3 * factor, 1e-6))
        assert found[f"layers.{layer}.input_layernorm.weight"] == pytest.approx((1, 0, 1e-6))
    assert found["embed_tokens.weight"] == pytest.approx((1, 0, 3e-6))
    assert found["norm.weight"] == pytest.approx((1, 0, 3e-6))
    assert found["lm_head.weight"] == pytest.approx((1, 0.3, 3e-6))


def test_settings_of_a_group_are_those_of_the_base_model():
    groups = {"up": ParameterGroupConfig("*.up_proj.*", lr_scale=0.5, weight_decay=0.2)}
    found = settings(OptimConfig(learning_rate=0.1, weight_decay=0.3, groups=groups))
    assert found["layers.0.mlp.up_proj.weight"][:2] == pytest.approx((0.5 / 4, 0.2 * 4))
    assert found["layers.0.mlp.down_proj.weight"][:2] == pytest.approx((1 / 4, 0.3 * 4))


def test_the_spectral_norm_of_an_update_by_muon_does_not_depend_on_the_width():
    norms = []
    for width in (32, 128):
        config = tiny(
            hidden_size=width,
            intermediate_size=2 * width,
            num_heads=width // 16,
            num_kv_heads=width // 32,
            parametrization="completep",
            base_hidden_size=32,
            base_num_layers=3,
        )
        model = Decoder(config)
        initialize(model, config, 0)
        options = {"ns_coefficients": "polar_express", "ns_steps": 8}
        optim = OptimConfig("muon", learning_rate=0.1, weight_decay=0.0, options=options)
        optimizer = build_optimizer(model, optim, None, parametrization_of(config))
        matrix = model.get_parameter("layers.1.mlp.up_proj.weight")
        before = matrix.detach().clone()
        tokens = torch.arange(256).reshape(2, 128)
        model(tokens, tokens.roll(-1, 1)).backward()
        for group in optimizer.param_groups:
            group["lr"] = 0.1 * group["lr_scale"]
        optimizer.step()
        norms.append(float(torch.linalg.matrix_norm(matrix.detach() - before, 2)))
    assert norms[1] == pytest.approx(norms[0], rel=0.02)


def test_standard_settings_are_those_of_the_config():
    model = Decoder(replace(WIDER, parametrization="standard", base_hidden_size=None,
                            base_num_layers=None))  # fmt: skip
    groups = parameter_groups(model, OptimConfig(learning_rate=0.1, eps=1e-8))
    assert {(group.lr_scale, group.weight_decay, group.eps) for group in groups} == {
        (1.0, 0.1, 1e-8),
        (1.0, 0.0, 1e-8),
    }
