"""Names of torch that are not public, and that the code can do without: this says when they go."""

from __future__ import annotations

import pytest
import torch
from torch.distributed import distributed_c10d
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule


@pytest.mark.parametrize(
    ("owner", "name", "without"),
    [
        (distributed_c10d, "_set_pg_timeout", "the watchdog leaves torch's timeouts as they are"),
        (distributed_c10d, "_world", "the watchdog counts no collectives"),
        (FSDPModule, "_set_unshard_async_op", "gathering weights on CPUs blocks"),
        (DeviceMesh, "_concatenate", "replicas with context parallelism slice a flat mesh"),
        (torch._inductor.config, "_micro_pipeline_tp", "parallel.async_tp is refused"),
    ],
)
def test_it_is_there(owner, name, without):
    assert hasattr(owner, name), without
