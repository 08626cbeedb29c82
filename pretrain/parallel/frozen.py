"""Shards a network that only computes answers, next to the one that is trained.

It has the layout of the trained network, but neither gradients nor optimizer states, and its
weights are stored in the dtype of the matrix products. FSDP2 is not applied to the weights of a
single process, which it would copy.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

import torch
from torch import Tensor
from torch.distributed.fsdp import fully_shard

from model.config import ModelConfig
from model.network import Decoder, build_meta
from pretrain.config import ParallelConfig
from pretrain.hardware import compute_dtype
from pretrain.parallel import materialize
from pretrain.parallel.compile import compile_blocks
from pretrain.parallel.context import ContextParallel
from pretrain.parallel.mesh import Layout
from pretrain.parallel.tensor import apply_tensor_parallel


def build_frozen(
    network: ModelConfig,
    layout: Layout,
    config: ParallelConfig,
    precision: str,
    device: torch.device,
    value: Callable[[str, torch.Size], Tensor],
    windows: Collection[int | None] | None = None,
) -> Decoder:
    """Returns a sharded decoder in eval mode, whose parameters have no gradients.

    Args:
        network: The shape of the decoder.
        layout: The device mesh.
        config: The settings of the run; only `compile` is used.
        precision: Precision of the run; fp8 counts as bf16.
        device: The device of this process.
        value: Function (name, whole shape) -> the whole tensor of a parameter.
        windows: Windows of the layers of the trained network, so that context parallelism gives
            both networks the same positions.
    """
    model = build_meta(network).to(compute_dtype(precision))
    if layout.tp.size() > 1:
        apply_tensor_parallel(model, layout.tp)
    if layout.cp.size() > 1:
        model.sequence_sharding = ContextParallel(layout.cp, windows)
    model.requires_grad_(False).eval()
    if config.compile is True:
        compile_blocks(model)
    if layout.data.size() > 1:
        for part in (*model.layers, model):
            # The whole model too: nothing stays gathered while the other network is trained.
            fully_shard(part, mesh=layout.data, reshard_after_forward=True)
    materialize(model, device, value)
    return model
