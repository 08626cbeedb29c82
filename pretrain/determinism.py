"""Makes kernels deterministic: with `deterministic=true`, a repeated step has the same bits.

On a GPU, attention's backward pass and other kernels add in the order in which thread blocks end,
unless torch is set to use slower kernels with a fixed order. On a CPU, all kernels that a run uses
have a fixed order anyway.
"""

from __future__ import annotations

import os

from conf.errors import InputError
from pretrain.config import PretrainConfig

CUBLAS_WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
"""Environment variable with the workspaces of cuBLAS, which reads it at its first call."""
WITHOUT_FIXED_ORDER = ("cudnn",)
"""Attention backends without a deterministic backward pass."""


def check_deterministic(config: PretrainConfig, device: str) -> None:
    """Raises InputError if a setting needs equal bits and the device does not promise them."""
    if device == "cpu":
        return
    attention = config.parallel.attention
    if config.deterministic and attention in WITHOUT_FIXED_ORDER:
        raise InputError(
            f"parallel.attention={attention} with deterministic=true: its backward pass adds in no "
            "fixed order. Use parallel.attention=auto."
        )
    if config.health.replay_steps and not promises_bits(config, device):
        raise InputError(
            f"health.replay_steps={config.health.replay_steps}: on a GPU, a step that is run twice "
            "differs in some bits unless kernels are deterministic. Add deterministic=true, or "
            "remove health.replay_steps."
        )


def promises_bits(config: PretrainConfig, device: str) -> bool:
    """Returns whether a step that is repeated has the same bits."""
    return device == "cpu" or config.deterministic


def set_determinism(on: bool, device: str) -> None:
    """Makes torch use deterministic kernels only, or any. An operator that has none raises."""
    import torch
    import torch._inductor.config

    torch.use_deterministic_algorithms(on)
    if not on:
        return
    # Filling new tensors only helps to find reads of uninitialized memory.
    setattr(torch.utils.deterministic, "fill_uninitialized_memory", False)  # noqa: B010  a property
    if device == "cuda":
        os.environ.setdefault(CUBLAS_WORKSPACE, ":4096:8")
    if hasattr(torch._inductor.config, "deterministic"):
        torch._inductor.config.deterministic = True  # kernels are not chosen by their times
