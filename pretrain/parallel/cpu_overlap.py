"""Overlaps FSDP2's communication with computation on CPUs.

On GPUs, FSDP2 uses CUDA streams for this. A CPU has none, so each collective would block the
computing thread. This module makes the collectives asynchronous: gloo's threads all-gather a
block's weights while the previous block computes, and reduce-scatter a block's gradients while the
backward pass continues.
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


def overlap_on_cpu(parts: Sequence[FSDPModule], reduces_once: bool) -> None:
    """Makes the collectives of modules under `fully_shard` asynchronous.

    parts: the model, then its sharded submodules in the order of the forward pass.
    reduces_once: whether nothing but the optimizer reads what a reduce-scatter returns. Otherwise,
        as with replicas or sharded accumulation, only the all-gathers overlap.
    """
    gather_ahead = getattr(parts[0], "_set_unshard_async_op", None)
    if gather_ahead is not None:  # otherwise all-gathers block, as without this module
        gather_ahead(True)
    # FSDP2 already prefetches in the backward pass.
    for part, following in pairwise(parts):
        part.set_modules_to_forward_prefetch([following])
    if reduces_once:
        for part in parts:
            reduction: Any = AsyncReduceScatter()
            part.set_custom_reduce_scatter(reduction)


class AsyncReduceScatter:
    """A reduce-scatter that is awaited at the end of the backward pass."""

    def allocate(self, size: Sequence[int], *, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Returns a buffer from which FSDP2 sends, or into which it receives."""
        return torch.empty(*size, dtype=dtype, device=device)

    def __call__(
        self,
        output_tensor: Tensor,
        input_tensor: Tensor,
        group: dist.ProcessGroup,
        op: Any,
        async_op: bool = False,
    ) -> dist.Work:
        """Starts the reduce-scatter, for which the end of the backward pass waits."""
        # torch 2.13 renamed this function and warns about the old name.
        reduce: Any = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor
        work = reduce(output_tensor, input_tensor, op, group, async_op=True)
        assert work is not None
        engine: Any = Variable._execution_engine
        engine.queue_callback(work.wait)
        return work
