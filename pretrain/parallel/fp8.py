"""fp8 matrix products through torchao: every linear of attention and MLP; head and embedding stay
in bf16, as in H2O-Danube (arXiv 2401.16818, section 3).

Weights, optimizer states and the gathering of weights keep their types: a converted linear casts
its bf16 operands to fp8 by scales found on the spot. On a CPU the products are emulated: the
numbers are rounded to fp8, then multiplied in higher precision.
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
    """Turns the linears of all blocks into those of `precision` in place.

    precision: `fp8` (one scale a matrix, fastest), `fp8_rowwise` (one a row, more exact), or any
        other for plain linears. May be called again, between steps, to change it.
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
        # torchao makes a new module; its nature is given to the old one, which keeps its place,
        # its weight and the hooks of tensor parallelism.
        fp8 = convert_to_float8_training(linear, config=config)
        linear.__dict__ |= {key: value for key, value in vars(fp8).items() if key not in plain}
        linear.__class__ = type(fp8)


def fp8_linears(model: Decoder) -> list[str]:
    """Names of the linears whose products are in fp8."""
    named = model.layers.named_modules(prefix="layers")
    return [n for n, m in named if isinstance(m, nn.Linear) and type(m) is not nn.Linear]
