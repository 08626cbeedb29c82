"""Gates of attention heads: what they change, and what counts them."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from conf.errors import InputError
from model.families import FAMILIES
from model.flops import flops_per_token, matmul_parameters, parameters
from model.init import initial_value
from model.network import Decoder
from tests.model.shapes import tiny

PLAIN: dict[str, Any] = {
    "architecture": "lfm3",
    "norm_order": "both",
    "qk_norm": True,
    "sliding_window": None,
}


def network(**changes: Any) -> Decoder:
    config = tiny(**PLAIN | changes)
    model = Decoder(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(initial_value(name, parameter.shape, config, 0))
    return model


def test_gates_scale_the_output_of_each_head():
    """Every head has one gate between 0 and 1, around 1/2, and all else stays the same."""
    plain, gated = network(), network(head_gates=True)
    assert not [name for name, _ in plain.named_parameters() if "g_proj" in name]
    x = torch.randn(2, 9, plain.config.hidden_size)
    attention: Any = gated.layers[0].self_attn
    other: Any = plain.layers[0].self_attn
    seen: dict[str, torch.Tensor] = {}
    for name, module in (("gated", attention), ("plain", other)):
        module.o_proj.register_forward_pre_hook(
            lambda module, args, name=name: seen.update({name: args[0]})
        )
    tokens = torch.randint(0, 50, (2, 9))
    gated(tokens), plain(tokens)
    gates = seen["gated"] / seen["plain"]
    by_head = gates.unflatten(-1, (gated.config.num_heads, -1))
    assert torch.allclose(by_head, by_head[..., :1].expand_as(by_head), atol=1e-4)
    assert by_head.amin() > 0
    assert by_head.amax() < 1
    assert by_head.mean().item() == pytest.approx(0.5, abs=0.15)
    assert by_head.std() > 1e-3
    assert attention.g_proj(x).shape == (2, 9, gated.config.num_heads)


def test_gradients_reach_the_gates():
    model = network(head_gates=True)
    loss: Any = model(torch.randint(0, 50, (2, 9)), torch.randint(0, 50, (2, 9)))
    loss.backward()
    layers: Any = model.layers
    for layer in layers:
        assert layer.self_attn.g_proj.weight.grad.abs().sum() > 0


def test_gates_are_counted():
    plain, gated = network(), network(head_gates=True)
    config = gated.config
    more = config.num_layers * config.hidden_size * config.num_heads
    for model in (plain, gated):
        built = sum(parameter.numel() for parameter in model.parameters())
        assert parameters(model.config) == built
    assert parameters(config) - parameters(plain.config) == more
    assert matmul_parameters(config) - matmul_parameters(plain.config) == more
    assert flops_per_token(config, 64) - flops_per_token(plain.config, 64) == 6 * more


@pytest.mark.parametrize("family", sorted(FAMILIES.keys() - {"lfm3"}))
def test_a_class_without_gates_refuses_them(family):
    features = {"sliding_window": None, **FAMILIES[family].fixed}
    with pytest.raises(InputError, match=rf"model\.head_gates=True: model\.architecture={family}"):
        tiny(architecture=family, head_gates=True, **features)
