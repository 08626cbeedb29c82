"""The processes of a run: start, device, mesh, and sums over them."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from conf.errors import EXIT_HANG, RunFault
from pretrain.checks import device_of
from pretrain.config import MESH

START_SECONDS = "HEADWATER_START_SECONDS"
"""How long ranks wait for each other at the start; 600 where it is not set."""
PR_SET_PDEATHSIG = 1  # <linux/prctl.h>


@dataclass(frozen=True)
class Processes:
    """This process among the others."""

    device: torch.device
    rank: int
    world_size: int

    @property
    def is_main(self) -> bool:
        """Whether this process writes what only one may write."""
        return self.rank == 0


def start(device: str) -> Processes:
    """Joins the process group that `torchrun` set up, or makes one of this process alone."""
    offered = "cuda" if torch.cuda.is_available() else "cpu"
    use_cuda = device_of(device, offered) == "cuda"
    backend = "cpu:gloo,cuda:nccl" if use_cuda else "gloo"
    if "RANK" in os.environ:
        follow_launcher()
        join(backend, float(os.environ.get(START_SECONDS, "600")))
    else:
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    place = torch.device("cpu")
    if use_cuda:
        place = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(place)
    return Processes(place, dist.get_rank(), dist.get_world_size())


def follow_launcher() -> None:
    """Has the kernel send SIGTERM to this rank of torchrun when its launcher dies: killed, it could
    not end the ranks any more, which are in sessions of their own."""
    parent = os.getppid()
    if "TORCHELASTIC_RUN_ID" in os.environ and sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # it died meanwhile
            os.kill(os.getpid(), signal.SIGTERM)


def join(backend: str, seconds: float) -> None:
    """Meets the other ranks. Raises RunFault where not all of them come."""
    try:
        dist.init_process_group(backend, timeout=timedelta(seconds=seconds))
    except (RuntimeError, OSError) as error:
        of = os.environ
        where = f"{of.get('MASTER_ADDR')}:{of.get('MASTER_PORT')}"
        fault = RunFault(
            f"rank {of['RANK']} of {of.get('WORLD_SIZE')} did not meet the others at {where} "
            f"within {seconds:.0f} s ({str(error).splitlines()[0][:200]}): check that rank 0 runs "
            f"there, that nothing else uses the port and that all ranks were started, or set "
            f"{START_SECONDS} higher.",
            EXIT_HANG,
        )
        fault.every_rank = True
        raise fault from None


@dataclass(frozen=True)
class Layout:
    """The device mesh, its dimensions named as in MESH, and its parts.

    data: what weights are split and replicated over, one-dimensional unless they are replicated:
        the processes of a context-parallel group hold parts of the weights too.
    dp: all processes with samples of their own, as one dimension; cp: those that share sequences;
    tp: the tensor-parallel ranks.
    """

    mesh: DeviceMesh
    data: DeviceMesh
    dp: DeviceMesh
    cp: DeviceMesh
    tp: DeviceMesh

    def sizes(self) -> dict[str, int]:
        """Size of each dimension by name."""
        return dict(zip(self.mesh.mesh_dim_names or (), self.mesh.shape, strict=True))


def make_layout(sizes: tuple[int, int, int, int], device: torch.device) -> Layout:
    """Builds the mesh of sizes in the order of MESH."""
    mesh = init_device_mesh(device.type, sizes, mesh_dim_names=MESH)
    replicate, _, cp, _ = sizes
    # Weights are split over samples and sequences as over one dimension of the same mesh.
    weights = mesh["dp_shard", "cp"]._flatten("weights") if cp > 1 else mesh["dp_shard"]
    if replicate == 1:
        data = weights
    elif cp == 1:
        data = mesh["dp_replicate", "dp_shard"]
    elif hasattr(DeviceMesh, "_concatenate"):
        data = DeviceMesh._concatenate([mesh["dp_replicate"], weights])
    else:  # older torch takes the flat part by its name
        data = mesh["dp_replicate", "weights"]
    dp = mesh["dp_replicate", "dp_shard"]._flatten("dp")
    return Layout(mesh, data, dp, mesh["cp"], mesh["tp"])


def all_reduce_sum(tensor: Tensor, mesh: DeviceMesh) -> Tensor:
    """Sums in place over the ranks of a one-dimensional mesh."""
    if mesh.size() > 1:
        dist.all_reduce(tensor, group=mesh.get_group())
    return tensor
