"""Names of torch that are not public, and that the code can do without: this says when they go."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from torch._C import _distributed_c10d
from torch.distributed import distributed_c10d
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule

from pretrain.health.watchdog import timeout_setter


@pytest.mark.parametrize(
    ("owner", "name", "without"),
    [
        (_distributed_c10d, "_dump_fr_trace", "a hang leaves no record of gloo's collectives"),
        (_distributed_c10d, "_dump_fr_trace_json", "a hang names no last collectives"),
        (distributed_c10d, "_world", "the watchdog counts no collectives"),
        (FSDPModule, "_set_unshard_async_op", "gathering weights on CPUs blocks"),
        (DeviceMesh, "_concatenate", "replicas with context parallelism slice a flat mesh"),
        (torch._inductor.config, "_micro_pipeline_tp", "parallel.async_tp is refused"),
        (torch.cuda.memory, "_record_memory_history", "profile.memory is refused"),
    ],
)
def test_it_is_there(owner, name, without):
    assert hasattr(owner, name), without


def test_the_timeout_of_a_group_can_be_set():
    """`_set_pg_timeout` may go from the code when the oldest torch is 2.14."""
    setter = timeout_setter()
    assert setter is not None, "the watchdog leaves torch's timeouts as they are"
    assert (setter.__name__ == "set_timeout") == hasattr(dist, "set_timeout")


def test_torchao_multiplies_plain_tensors():
    from torchao.float8 import float8_linear

    without = "fp8 multiplies DTensors under tensor parallelism, with a message per cast"
    assert hasattr(float8_linear, "matmul_with_hp_or_float8_args"), without


@pytest.mark.skipif(not dist.is_nccl_available(), reason="this torch is built without NCCL")
def test_nccl_has_a_recorder():
    names = {"_dump_nccl_trace", "_dump_nccl_trace_json"}
    assert names <= set(dir(_distributed_c10d)), "a hang leaves no record of NCCL's collectives"
