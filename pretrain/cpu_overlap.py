"""FSDP2's communication beside the computation of CPUs.

FSDP2 hides its collectives behind CUDA streams. A CPU has none, and there each of them blocks the
thread that computes. Here they are asynchronous instead: gloo's threads gather a block's weights
while the one before it computes, and reduce a block's gradients while the next ones are found.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch.distributed as dist
from torch import Tensor
from torch.autograd.variable import Variable
from torch.distributed.fsdp import FSDPModule

from model.network import Decoder

try:
    from torch.distributed.fsdp._fully_shard._fsdp_collectives import DefaultReduceScatter
except ImportError:  # a torch without it reduces as it did
    DefaultReduceScatter = None


def overlap_on_cpu(model: Decoder, replicated: bool) -> None:
    """Makes the collectives of a decoder that `fully_shard` has split asynchronous.

    replicated: gradients are summed over replicas after they are scattered, which FSDP2 does at
        once: then only the gathering of weights overlaps.
    """
    parts = [model, *model.layers]
    assert all(isinstance(part, FSDPModule) for part in parts)
    model._set_unshard_async_op(True)  # type: ignore[operator]
    # The backward pass gathers ahead by itself.
    for part, following in pairwise(parts):
        part.set_modules_to_forward_prefetch([following])  # type: ignore[operator]
    if DefaultReduceScatter is None or replicated:
        return
    for part in parts:
        part.set_custom_reduce_scatter(AsyncReduceScatter())  # type: ignore[operator]


if DefaultReduceScatter is not None:

    class AsyncReduceScatter(DefaultReduceScatter):  # type: ignore[misc,valid-type]
        """Waited for at the end of the backward pass. The trainer reduces once a step, so nothing
        looks at what is reduced before."""

        def __call__(
            self,
            output_tensor: Tensor,
            input_tensor: Tensor,
            group: dist.ProcessGroup,
            op: Any,
            async_op: bool = False,
        ) -> dist.Work:
            """Starts it, and lets the end of the backward pass wait for it."""
            work = super().__call__(output_tensor, input_tensor, group, op, async_op=True)
            Variable._execution_engine.queue_callback(work.wait)
            return work
