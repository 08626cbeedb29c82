"""Initial values, a pure function of (config, seed, parameter's name).

Each parameter has a generator of its own, so that neither the order of the modules nor the way
they are split over processes changes a single bit of it.
"""

from __future__ import annotations

import hashlib
import math

import torch
from torch import Tensor

from model.config import ModelConfig

RESIDUAL_WRITERS = ("o_proj.weight", "down_proj.weight")


def initial_value(name: str, shape: torch.Size, config: ModelConfig, seed: int) -> Tensor:
    """The whole float32 value of the parameter `name` on the CPU: ones for norms, else
    N(0, initializer_range), scaled for the residual's writers where `init=scaled_residual`."""
    if len(shape) == 1:
        return torch.ones(shape)
    std = config.initializer_range
    if config.init == "scaled_residual" and name.endswith(RESIDUAL_WRITERS):
        std /= math.sqrt(2 * config.num_layers)
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
    return torch.empty(shape).normal_(0.0, std, generator=generator)
