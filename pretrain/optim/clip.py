"""Scales and clips the gradients in one pass."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.utils import get_total_norm


@torch.no_grad()
def scale_and_clip(
    parameters: Iterable[nn.Parameter], scale: Tensor, max_grad_norm: float
) -> Tensor:
    """Multiplies all gradients by `scale`, then scales their norm down to `max_grad_norm`.

    Returns the norm over all ranks, after scaling and before clipping, as a 0-d tensor. The host
    does not wait for the device.

    max_grad_norm: largest norm after clipping; 0 for no clipping.
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    norm = get_total_norm(gradients)
    if isinstance(norm, DTensor):
        norm = norm.full_tensor()
    norm = norm * scale
    factor = scale
    if max_grad_norm > 0:
        factor = scale * torch.clamp(max_grad_norm / (norm + 1e-6), max=1.0)
    local = [g.to_local() if isinstance(g, DTensor) else g for g in gradients]
    torch._foreach_mul_(local, factor)
    return norm
