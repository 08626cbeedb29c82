"""FSDP2's communication beside the computation of CPUs.

FSDP2 hides its collectives behind CUDA streams. A CPU has none, and there each of them blocks the
thread that computes. Here they are asynchronous instead: gloo's threads gather a block's weights
while the one before it computes, and reduce a block's gradients while the next ones are found.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.variable import Variable
from torch.distributed.fsdp import FSDPModule


def overlap_on_cpu(parts: Sequence[FSDPModule], replicated: bool) -> None:
    """Makes the collectives of what `fully_shard` has split asynchronous.

    parts: the model, then what it has split inside, in the order of the forward pass.
    replicated: gradients are summed over replicas after they are scattered, which FSDP2 does at
        once: then only the gathering of weights overlaps.
    """
    gather_ahead = getattr(parts[0], "_set_unshard_async_op", None)
    if gather_ahead is not None:  # else gathering blocks, as it does without this module
        gather_ahead(True)
    # The backward pass gathers ahead by itself.
    for part, following in pairwise(parts):
        part.set_modules_to_forward_prefetch([following])
    if not replicated:
        for part in parts:
            reduction: Any = AsyncReduceScatter()
            part.set_custom_reduce_scatter(reduction)


class AsyncReduceScatter:
    """Waited for at the end of the backward pass. The trainer reduces once a step, so nothing
    looks at what is reduced before."""

    def allocate(self, size: Sequence[int], *, dtype: torch.dtype, device: torch.device) -> Tensor:
        """What FSDP2 sends from and receives in."""
        return torch.empty(*size, dtype=dtype, device=device)

    def __call__(
        self,
        output_tensor: Tensor,
        input_tensor: Tensor,
        group: dist.ProcessGroup,
        op: Any,
        async_op: bool = False,
    ) -> dist.Work:
        """Starts it, and lets the end of the backward pass wait for it."""
        # torch 2.13 has another name for it and warns of the old one.
        reduce: Any = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor
        work = reduce(output_tensor, input_tensor, op, group, async_op=True)
        assert work is not None
        engine: Any = Variable._execution_engine
        engine.queue_callback(work.wait)
        return work
