"""Runs the linear layers of attention and MLP with fp8 matrix products, through torchao.

Head and embedding stay in bf16, as in H2O-Danube (arXiv 2401.16818, section 3). Weights, optimizer
states and all-gathers keep their dtypes: a converted linear casts its bf16 operands to fp8 with
dynamic scales. Under tensor parallelism, each rank scales its own part of a matrix: its products
need no other scale, and one scale for the whole matrix would cost a message per cast. On a CPU the
products are emulated: operands are rounded to fp8 and multiplied in higher precision.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Partial, Shard

from conf.terminal import silence_torchao
from model.network import Decoder

SCALING = {"fp8": "tensorwise", "fp8_rowwise": "rowwise"}
"""torchao's recipe for each value of `precision`."""
GATES = "self_attn.g_proj"
"""Name of the linear layers with one output per head, too few for fp8 products to pay."""


def apply_fp8(model: Decoder, precision: str, device: torch.device) -> None:
    """Converts the linear layers of all blocks to `precision`, in place.

    It may be called again between steps to change the precision.

    precision: `fp8` (one scale per matrix, fastest), `fp8_rowwise` (one scale per row, more
        accurate), or any other value for plain linear layers.
    """
    linears = [
        module
        for name, module in model.layers.named_modules()
        if isinstance(module, nn.Linear) and not name.endswith(GATES)
    ]
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
        converted: Any = type(fp8)
        linear.__class__ = _on_shards(converted)


@cache
def _on_shards(base: Any) -> Any:
    """Returns a subclass of torchao's linear layer that multiplies this rank's shards."""
    from torchao.float8 import float8_linear

    multiply = getattr(float8_linear, "matmul_with_hp_or_float8_args", None)
    if multiply is None:  # torchao then multiplies DTensors, which reduces every scale over ranks
        return base
    apply = multiply.apply

    class ShardedFloat8Linear(base):
        """An fp8 linear layer whose weight may be split over tensor-parallel ranks."""

        def forward(self, input: Tensor) -> Tensor:
            """Returns the product, split over its columns or partial like that of `nn.Linear`."""
            weight = self.weight
            if not isinstance(weight, DTensor):
                return super().forward(input)
            assert isinstance(input, DTensor)
            by_columns = weight.placements[0] == Shard(0)
            rows = input.to_local(grad_placements=[Partial()] if by_columns else None)
            product = apply(rows, weight.to_local().t(), self.linear_mm_config, self.config)
            if isinstance(self.bias, DTensor):  # split like the columns of the product
                product = product + self.bias.to_local()
            placement = Shard(product.ndim - 1) if by_columns else Partial()
            return DTensor.from_local(product, weight.device_mesh, [placement], run_check=False)

    return ShardedFloat8Linear


def fp8_linears(model: Decoder) -> list[str]:
    """Returns the names of the linear layers that multiply in fp8."""
    named = model.layers.named_modules(prefix="layers")
    return [n for n, m in named if isinstance(m, nn.Linear) and type(m) is not nn.Linear]
