"""Tensor parallelism whose gathers and scatters run while the matrices beside them are multiplied
(asynchronous TP): torch.compile cuts each product into as many parts as there are ranks and fetches
one while it multiplies another, over memory that the GPUs of a machine share."""

from __future__ import annotations

import torch
from torch.distributed.device_mesh import DeviceMesh


def apply_async_tensor_parallel(mesh: DeviceMesh) -> None:
    """Tells the compiler; to be called before it compiles."""
    from torch.distributed._symmetric_memory import enable_symm_mem_for_group

    torch._inductor.config._micro_pipeline_tp = True
    enable_symm_mem_for_group(mesh.get_group().group_name)
