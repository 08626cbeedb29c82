"""An RMSNorm over values that tensor parallelism splits over ranks, such as all heads of a token.

Each rank has some of the values of a token and the weights for them. The mean of the squares is
that of all values, so that the ranks all-reduce one number per token.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed._functional_collectives import all_reduce, wait_tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from torch.nn import Parameter

from model.norms import ZeroCenteredRMSNorm


class ShardedRMSNorm(nn.RMSNorm):
    """A norm whose weights, and the values that it normalizes, are split over a mesh."""

    def __init__(self, norm: nn.RMSNorm, mesh: DeviceMesh) -> None:
        super().__init__(norm.normalized_shape, eps=norm.eps, device="meta")
        self.weight = Parameter(distribute_tensor(norm.weight, mesh, [Shard(0)]))
        self.offset = 1.0 if isinstance(norm, ZeroCenteredRMSNorm) else 0.0
        self.group = mesh.get_group()

    def forward(self, x: Tensor) -> Tensor:
        """Maps this rank's values x (..., width / ranks) to the same shape."""
        (width,) = self.normalized_shape
        assert self.eps is not None
        whole = x.float()
        squares = _SumOverRanks.apply(whole.square().sum(-1, keepdim=True), self.group)
        weight = cast(DTensor, self.weight).to_local().float() + self.offset
        return (whole * torch.rsqrt(squares / width + self.eps) * weight).to(x.dtype)


class _SumOverRanks(torch.autograd.Function):
    """A sum over ranks, each of which computes a part of the loss from the sum.

    The gradient of a rank's summand is therefore the sum of all ranks' gradients.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        return wait_tensor(all_reduce(x, "sum", group))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return wait_tensor(all_reduce(grads[0].contiguous(), "sum", ctx.group)), None
