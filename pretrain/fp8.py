"""fp8 matrix products through torchao: every linear of attention and MLP; head and embedding stay
in bf16, as in H2O-Danube (arXiv 2401.16818, section 3).

Weights, optimizer states and the gathering of weights keep their types: a converted linear casts
its bf16 operands to fp8 by scales found on the spot. On a CPU the products are emulated: the
numbers are rounded to fp8, then multiplied in higher precision.
"""

from __future__ import annotations

import importlib.util
from dataclasses import replace

import torch
from torch import nn

from conf.errors import InputError
from conf.quiet import quiet_torchao
from model.config import ModelConfig
from model.network import Decoder

SCALING = {"fp8": "tensorwise", "fp8_rowwise": "rowwise"}
"""torchao's recipe for each value of `precision`."""
MULTIPLE = 16
"""What `torch._scaled_mm` asks of the sides of its matrices."""
FIRST_CAPABILITY = (8, 9)
"""Compute capability of the first NVIDIA GPUs that multiply fp8 (Ada)."""


def check_fp8(
    precision: str,
    model: ModelConfig,
    tp: int,
    cp: int,
    micro_batch_tokens: int,
    device: torch.device,
) -> None:
    """Raises InputError where fp8 is asked for and cannot run: package, device, or a side that is
    no multiple of 16 on each of `tp` and `cp` ranks.

    micro_batch_tokens: the inner side of weight gradients.
    """
    if precision not in SCALING:
        return
    if importlib.util.find_spec("torchao") is None:
        raise InputError(
            f"precision={precision} needs the package torchao, which is not installed: "
            "pip install -c constraints.txt torchao, or take precision=bf16."
        )
    if device.type == "cuda":
        found = torch.cuda.get_device_capability(device)
        if torch.version.hip is None and found < FIRST_CAPABILITY:
            raise InputError(
                f"precision={precision}, but {torch.cuda.get_device_name(device)} has compute "
                f"capability {found[0]}.{found[1]}, expected {FIRST_CAPABILITY[0]}."
                f"{FIRST_CAPABILITY[1]} or more: take precision=bf16."
            )
    for key, size, split, parts in (
        ("model.hidden_size", model.hidden_size, "tp", 1),
        ("model.num_heads * head_dim", model.query_size, "tp", tp),
        ("model.num_kv_heads * head_dim", model.kv_size, "tp", tp),
        ("model.intermediate_size", model.intermediate_size, "tp", tp),
        ("parallel.micro_batch_tokens", micro_batch_tokens, "cp", cp),
    ):
        if size % (MULTIPLE * parts):
            ranks = f" on each of parallel.{split}={parts} ranks" if parts > 1 else ""
            raise InputError(
                f"precision={precision}, but {key}={size} is not a multiple of {MULTIPLE}{ranks}: "
                "change it, or take precision=bf16."
            )


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
    quiet_torchao()
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
