"""Initial values of the parameters, as a pure function of config, seed and parameter name.

Each parameter has its own random generator. The values are therefore bit-identical for any order of
the modules and any sharding.
"""

from __future__ import annotations

import hashlib
import math

import torch
from torch import Tensor

from model.config import ModelConfig
from model.parametrization import parametrization_of

RESIDUAL_WRITERS = ("o_proj.weight", "down_proj.weight")
"""Matrices of a block whose output is added to the residual stream, maybe after a norm."""


def initial_value(name: str, shape: torch.Size, config: ModelConfig, seed: int) -> Tensor:
    """Returns the whole float32 value of the parameter `name`, on the CPU.

    Biases are 0. Norm weights are 1, or 0 if norms are zero-centered. Matrices are drawn from
    N(0, initializer_range), with a smaller standard deviation for RESIDUAL_WRITERS if
    `init=scaled_residual`. With `parametrization=completep`, that depends on the depth of the base
    model, and matrices of the blocks have a standard deviation that depends on the width.
    """
    if len(shape) == 1:
        is_zero = config.zero_centered_norms or name.endswith(".bias")
        return torch.zeros(shape) if is_zero else torch.ones(shape)
    std = config.initializer_range
    if config.init == "scaled_residual" and name.endswith(RESIDUAL_WRITERS):
        std /= math.sqrt(2 * (config.base_num_layers or config.num_layers))
    std *= parametrization_of(config).init_scale(name, len(shape))
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
    return torch.empty(shape).normal_(0.0, std, generator=generator)
