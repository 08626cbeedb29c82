"""Everything that makes a decoder run on many devices, applied from outside in one order:
tensor parallel, context parallel, fp8, activation checkpointing, compile, data parallel. The
network itself knows nothing of it.
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
    """Splits a decoder on the meta device in place over a layout.

    Weights and their optimizer states stay float32; with precision=bf16 they are gathered and
    computed with in bfloat16, and gradients are reduced in float32. fp8 is that, with the matrix
    products of the blocks in fp8.
    """
    if layout.tp.size() > 1:
        apply_tensor_parallel(model, layout.tp)
    if config.async_tp:
        apply_async_tensor_parallel(layout.tp)
    if layout.cp.size() > 1:
        model.sequence_sharding = ContextParallel(layout.cp)
    apply_fp8(model, precision, torch.device(layout.mesh.device_type))
    apply_activation_checkpointing(model, config.activation_checkpointing)
    if config.compile is True:  # `auto` has become true or false where a run trains
        compile_blocks(model)
    apply_data_parallel(model, layout, config, precision)


def apply_data_parallel(
    model: Decoder, layout: Layout, config: ParallelConfig, precision: str
) -> None:
    """FSDP2 block by block; replicated over `dp_replicate` where that is more than one (HSDP)."""
    policy = MixedPrecisionPolicy()
    if compute_dtype(precision) == torch.bfloat16:
        policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    parts: list[tuple[nn.Module, bool | None]]
    again = config.reshards_after_forward(layout.data.size(-1))
    parts = [(block, again) for block in model.layers]
    if not model.config.tie_embeddings:
        # Its gradients are the first that are there, the embedding's the last.
        parts.append((model.lm_head, False))
    for part, reshard in [*parts, (model, None)]:
        fully_shard(part, mesh=layout.data, mp_policy=policy, reshard_after_forward=reshard)
    if layout.mesh.device_type == "cpu" and layout.data.size() > 1:
        split: Any = [model, *(part for part, _ in parts)]
        overlap_on_cpu(split, replicated=layout.data.ndim > 1)


def drop_gathered(model: nn.Module) -> None:
    """Frees the weights that a forward pass without a backward one has left gathered, so that
    between steps the parameters are the split ones, and no stale copy outlives a change of them."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


@torch.no_grad()
def fill(model: Decoder, device: torch.device, value: Callable[[str, torch.Size], Tensor]) -> None:
    """Gives a split decoder storage on `device` and fills each parameter from its whole value.

    value: (name, whole shape) -> the whole tensor; asked for one parameter at a time, so that no
        process ever holds more than one whole parameter.
    """
    model.to_empty(device=device)
    for name, parameter in model.named_parameters():
        whole = value(name, parameter.shape).to(device, parameter.dtype)
        assert isinstance(parameter, DTensor)
        # Every rank makes the whole value by itself: no broadcast.
        part = distribute_tensor(
            whole, parameter.device_mesh, parameter.placements, src_data_rank=None
        )
        parameter.to_local().copy_(part.to_local())
