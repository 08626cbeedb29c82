"""Scales and clips the gradients in one pass."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor


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
    norm = total_norm(gradients) * scale
    factor = scale
    if max_grad_norm > 0:
        factor = scale * torch.clamp(max_grad_norm / (norm + 1e-6), max=1.0)
    torch._foreach_mul_([local(gradient) for gradient in gradients], factor)
    return norm


def total_norm(gradients: Sequence[Tensor]) -> Tensor:
    """Returns the 2-norm of all gradients over all ranks, as a 0-d tensor.

    Every rank must call it. It sends one number, whatever the layout: a shard that several ranks
    hold counts on each of them as the part of itself that makes one whole. With norms of DTensors,
    torch would reduce over each dimension of the mesh after the other.
    """
    norms = torch._foreach_norm([local(gradient) for gradient in gradients])
    if not (dist.is_initialized() and dist.get_world_size() > 1):
        return torch.linalg.vector_norm(torch.stack(norms))
    # Kernels take these factors as arguments; as a tensor, they would be copied in each step.
    parts = [1 / copies(gradient) for gradient in gradients]
    total = torch.stack(torch._foreach_mul(torch._foreach_pow(norms, 2), parts)).sum()
    dist.all_reduce(total)
    return total.sqrt()


def copies(gradient: Tensor) -> int:
    """Returns the number of ranks that hold the same shard as this rank."""
    if not isinstance(gradient, DTensor):
        return dist.get_world_size()
    held = 1
    for size, placement in zip(gradient.device_mesh.shape, gradient.placements, strict=True):
        held *= size if placement.is_replicate() else 1
    return held


def local(gradient: Tensor) -> Tensor:
    """Returns this rank's shard of a gradient."""
    return gradient.to_local() if isinstance(gradient, DTensor) else gradient
