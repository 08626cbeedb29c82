"""Shards the model on torch's fake process group, to count the exact bytes per rank.

One process acts as rank 0 of any number of ranks, on fake tensors. It allocates no memory and sends
no data.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.tensor import DTensor

from model.config import ModelConfig
from model.network import build_meta
from model.parametrization import parametrization_of
from pretrain.checks import check_layout
from pretrain.config import OptimConfig, ParallelConfig
from pretrain.hardware import compute_dtype
from pretrain.optim import build_optimizer
from pretrain.parallel import parallelize
from pretrain.parallel.mesh import make_layout


@dataclass(frozen=True)
class StateBytes:
    """Bytes that rank 0, which holds the most, keeps after a step. seconds: time to count them."""

    weights: int
    gradients: int
    optimizer: int
    seconds: float


@contextmanager
def fake_ranks(world_size: int) -> Iterator[None]:
    """Makes this process rank 0 of a process group whose collectives do nothing."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=world_size)
    try:
        yield
    finally:
        dist.destroy_process_group()


def state_bytes(
    config: ModelConfig, parallel: ParallelConfig, precision: str, optim: OptimConfig
) -> StateBytes:
    """Returns the bytes that a model, built and sharded as in a run, occupies after one step."""
    started = time.perf_counter()
    layout = make_layout(check_layout(parallel, config, dist.get_world_size()), torch.device("cpu"))
    model = build_meta(config)
    parallelize(model, layout, parallel, precision)
    with FakeTensorMode(allow_non_fake_inputs=True):
        model.to_empty(device="cpu")
        model.tie()
        scales = parametrization_of(config)
        optimizer = build_optimizer(model, optim, compute_dtype(precision), scales)
        for parameter in model.parameters():
            parameter.grad = torch.empty_like(parameter)
        optimizer.step()
        states = [value for state in optimizer.state.values() for value in state.values()]
        return StateBytes(
            weights=sum(map(local_bytes, model.parameters())),
            gradients=sum(local_bytes(parameter.grad) for parameter in model.parameters()),
            # This includes 4 bytes per parameter tensor for its step count.
            optimizer=sum(local_bytes(state) for state in states),
            seconds=time.perf_counter() - started,
        )


def local_bytes(tensor: Tensor | None) -> int:
    """Returns the bytes of this rank's shard of a tensor."""
    if tensor is None:
        return 0
    local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    return local.numel() * local.element_size()
