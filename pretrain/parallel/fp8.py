"""Runs the linear layers of attention and MLP with fp8 matrix products, through torchao.

Head and embedding stay in bf16, as in H2O-Danube (arXiv 2401.16818, section 3). Weights, optimizer
states and all-gathers keep their dtypes: a converted linear casts its bf16 operands to fp8 with
dynamic scales. On a CPU the products are emulated: operands are rounded to fp8 and multiplied in
higher precision.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from conf.terminal import silence_torchao
from model.network import Decoder

SCALING = {"fp8": "tensorwise", "fp8_rowwise": "rowwise"}
"""torchao's recipe for each value of `precision`."""


def apply_fp8(model: Decoder, precision: str, device: torch.device) -> None:
    """Converts the linear layers of all blocks to `precision`, in place.

    It may be called again between steps to change the precision.

    precision: `fp8` (one scale per matrix, fastest), `fp8_rowwise` (one scale per row, more
        accurate), or any other value for plain linear layers.
    """
    linears = [module for module in model.layers.modules() if isinstance(module, nn.Linear)]
    for linear in linears:
        linear.__class__ = nn.Linear
    if precision not in SCALING:
        return
    silence_torchao()
    from torchao.float8 import Float8LinearConfig, convert_to_float8_training

    recipe = Float8LinearConfig.from_recipe_name(SCALING[precision])
    config = replace(recipe, emulate=device.type == "cpu")
    plain = vars(nn.Linear(1, 1)).keys()
    for linear in linears:
        # torchao creates a new module. The old module takes over the new class and attributes, and
        # keeps its own name, weight and tensor-parallel hooks.
        fp8 = convert_to_float8_training(linear, config=config)
        linear.__dict__ |= {key: value for key, value in vars(fp8).items() if key not in plain}
        linear.__class__ = type(fp8)


def fp8_linears(model: Decoder) -> list[str]:
    """Returns the names of the linear layers that multiply in fp8."""
    named = model.layers.named_modules(prefix="layers")
    return [n for n, m in named if isinstance(m, nn.Linear) and type(m) is not nn.Linear]
