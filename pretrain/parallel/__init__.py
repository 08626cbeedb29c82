"""Parallelizes a decoder over many devices, in a fixed order of steps.

The code of the network contains no parallelism; these modules apply it from outside. With 8
processes and `parallel.dp_replicate=2 parallel.tp=2`, the mesh is 2 x 2 x 1 x 2, and its inner
dimensions communicate most:

    dp_replicate   0                       1                       whole copies of the model
    dp_shard       0           1           0           1           shards of weights and states
    cp             0           0           0           0           parts of each sequence
    tp             0     1     0     1     0     1     0     1     parts of each matrix
    rank           0     1     2     3     4     5     6     7

Take the q_proj weight of a block, 512 x 512. Tensor parallelism gives 256 of its rows to rank 0 and
256 to rank 1. FSDP2 shards the rows of rank 0 over ranks 0 and 2, so each keeps 128 rows and their
optimizer state. Ranks 4 to 7 are replicas of ranks 0 to 3. In a step, ranks 0 and 2 all-gather
their 256 rows before the block runs and reduce-scatter the gradients afterwards; then ranks 0 and 4
all-reduce the gradients of their shard. Ranks 0 and 1 read the same samples; ranks 0, 2, 4 and 6
read different ones.

`parallelize` applies, in this order: tensor parallelism (`tensor`, `async_tensor`), context
parallelism (`context`), fp8 (`fp8`), activation checkpointing (`activation_checkpointing`),
compilation (`compile`) and FSDP2 (here, with `cpu_overlap` on CPUs). Each step applies to the
result of the previous one: a compiled block includes its recomputation, and FSDP2's hooks run
outside the compiled code.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from model.network import Decoder
from pretrain.config import ParallelConfig
from pretrain.hardware import compute_dtype
from pretrain.parallel.activation_checkpointing import apply_activation_checkpointing
from pretrain.parallel.async_tensor import apply_async_tensor_parallel
from pretrain.parallel.compile import compile_blocks
from pretrain.parallel.context import ContextParallel
from pretrain.parallel.cpu_overlap import overlap_on_cpu
from pretrain.parallel.fp8 import apply_fp8
from pretrain.parallel.mesh import Layout
from pretrain.parallel.tensor import apply_tensor_parallel


def parallelize(model: Decoder, layout: Layout, config: ParallelConfig, precision: str) -> None:
    """Shards a decoder on the meta device over a layout, in place.

    Weights and optimizer states stay in float32. With precision=bf16, weights are gathered and
    multiplied in bfloat16, and gradients are reduced in float32. With fp8, the blocks also compute
    their matrix products in fp8.
    """
    if layout.tp.size() > 1:
        apply_tensor_parallel(model, layout.tp)
    if config.async_tp:
        apply_async_tensor_parallel()
    if layout.cp.size() > 1:
        model.sequence_sharding = ContextParallel(layout.cp)
    apply_fp8(model, precision, torch.device(layout.mesh.device_type))
    apply_activation_checkpointing(model, config.activation_checkpointing)
    if config.compile is True:  # a run has replaced `auto` by now
        compile_blocks(model)
    apply_data_parallel(model, layout, config, precision)


def apply_data_parallel(
    model: Decoder, layout: Layout, config: ParallelConfig, precision: str
) -> None:
    """Applies FSDP2 (HSDP if there are replicas) to the blocks, an untied head and the model."""
    policy = MixedPrecisionPolicy()
    if compute_dtype(precision) == torch.bfloat16:
        policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    parts: list[tuple[nn.Module, bool | None]]
    last = (
        layout.data.ndim - 1
    )  # torch 2.11 does not count the dimensions of a flat mesh from the end
    reshards = config.reshards_after_forward(layout.data.size(last))
    parts = [(block, reshards) for block in model.layers]
    if not model.config.tie_embeddings:
        # The head is separate because its gradients are ready first, and the embedding's last.
        parts.append((model.lm_head, False))
    for part, reshard in [*parts, (model, None)]:
        fully_shard(part, mesh=layout.data, mp_policy=policy, reshard_after_forward=reshard)
    if layout.mesh.device_type == "cpu" and layout.data.size() > 1:
        modules: Any = [model, *(part for part, _ in parts)]
        once = layout.data.ndim == 1 and config.sharded_accumulation is not True
        overlap_on_cpu(modules, reduces_once=once)


def accumulate_gradients(model: FSDPModule, config: ParallelConfig, is_last: bool) -> None:
    """Sets what the next backward pass does with its gradients.

    Gradients are reduced in the last micro-batch of a step, and with `sharded_accumulation` in all
    of them. Sums over replicas are taken in the last one only.
    """
    model.set_requires_gradient_sync(is_last or config.sharded_accumulation is True)
    if config.sharded_accumulation is True:
        model.set_requires_all_reduce(is_last)


def reshard_parameters(model: nn.Module) -> None:
    """Frees weights that are still gathered after a forward pass without a backward pass.

    Between steps, the model then has only its sharded parameters, so no gathered copy gets stale.
    """
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


@torch.no_grad()
def materialize(
    model: Decoder, device: torch.device, value: Callable[[str, torch.Size], Tensor]
) -> None:
    """Allocates the shards on `device` and initializes each parameter from its whole value.

    value: function (name, whole shape) -> the whole tensor. It is called for one parameter at a
        time, so that no process ever holds more than one whole parameter.
    """
    model.to_empty(device=device)
    model.tie()
    for name, parameter in model.named_parameters():
        whole = value(name, parameter.shape).to(device, parameter.dtype)
        if not isinstance(parameter, DTensor):
            parameter.copy_(whole)
            continue
        # Every rank computes the whole value, so nothing is broadcast.
        shard = distribute_tensor(
            whole, parameter.device_mesh, parameter.placements, src_data_rank=None
        )
        parameter.to_local().copy_(shard.to_local())
