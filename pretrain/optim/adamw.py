"""AdamW (arXiv 1711.05101) in torch's fused implementation."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from pretrain.config import OptimConfig
from pretrain.optim import Optimizer, ParameterGroup

STATE_BYTES = 8
"""Bytes per parameter of the two float32 moments."""


@dataclass(frozen=True)
class AdamWOptions:
    """Options of AdamW: none, because it needs only the common keys of `optim`."""


def build(
    groups: list[ParameterGroup], config: OptimConfig, options: AdamWOptions, dtype: torch.dtype
) -> torch.optim.Optimizer:
    """Returns AdamW for all parameters."""
    return torch.optim.AdamW(
        [group.as_dict() for group in groups],
        lr=config.learning_rate,
        betas=(config.beta1, config.beta2),
        eps=config.eps,
        fused=True,
    )


def state_bytes(name: str, shape: tuple[int, ...], held: int) -> int:
    """Returns the bytes of both moments for the elements that a rank holds."""
    return STATE_BYTES * held


OPTIMIZER = Optimizer(AdamWOptions, build, state_bytes)
