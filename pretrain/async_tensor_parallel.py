"""Tensor parallelism whose gathers and scatters run while the matrices beside them are multiplied
(asynchronous TP): torch.compile cuts each product into as many parts as there are ranks and fetches
one while it multiplies another, over memory that the GPUs of a machine share."""

from __future__ import annotations

import torch
from torch.distributed.device_mesh import DeviceMesh

from conf.errors import InputError
from pretrain.config import ParallelConfig


def check_async_tensor_parallel(config: ParallelConfig, device: torch.device) -> None:
    """Raises InputError where it is asked for and cannot be."""
    if not config.async_tp:
        return
    key = "parallel.async_tp=true"
    if config.tp == 1:
        raise InputError(f"{key}, but parallel.tp=1: give parallel.tp of 2 or more, or drop it.")
    if not config.compile:
        raise InputError(f"{key} is made by the compiler: add parallel.compile=true.")
    if device.type != "cuda":
        raise InputError(f"{key} needs GPUs that reach each other's memory, found {device.type}.")
    if not hasattr(torch._inductor.config, "_micro_pipeline_tp"):
        raise InputError(f"{key} is not offered by torch {torch.__version__}: drop it.")


def apply_async_tensor_parallel(mesh: DeviceMesh) -> None:
    """Tells the compiler; to be called before it compiles."""
    from torch.distributed._symmetric_memory import enable_symm_mem_for_group

    torch._inductor.config._micro_pipeline_tp = True
    enable_symm_mem_for_group(mesh.get_group().group_name)
