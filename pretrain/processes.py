"""The processes of a run: this process, its device, and how the ranks form a process group."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

from conf.errors import EXIT_HANG, InputError, RunAborted
from pretrain.config import device_of

START_SECONDS = "HEADWATER_START_SECONDS"
"""Environment variable for the seconds that ranks wait for each other at the start; default 600."""
ALLOCATOR = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF")
"""Environment variables with the settings of torch's GPU allocator: the name since torch 2.9, and
the older ones, which torch still reads."""
PR_SET_PDEATHSIG = 1  # <linux/prctl.h>


@dataclass(frozen=True)
class Processes:
    """This process, as one of `world_size` ranks."""

    device: torch.device
    rank: int
    world_size: int

    @property
    def is_main(self) -> bool:
        """Returns whether this is rank 0, the only rank that writes shared files."""
        return self.rank == 0


def start(device: str, alone: bool = False) -> Processes:
    """Joins the process group that `torchrun` set up, or creates one for this process alone.

    Args:
        device: The config's choice: cpu, cuda or auto.
        alone: True for a group of this process alone also under `torchrun`.
    """
    available = "cuda" if torch.cuda.is_available() else "cpu"
    use_cuda = device_of(device, available) == "cuda"
    backend, torch_device, device_id = "gloo", torch.device("cpu"), None
    if use_cuda:
        set_allocator_default()
        # With a device_id, NCCL connects the GPUs here, and the groups of the mesh are split off
        # that communicator. Without one, each group connects by itself, in the first step.
        backend, torch_device = "cpu:gloo,cuda:nccl", own_gpu()
        torch.cuda.set_device(torch_device)
        device_id = torch_device
    if "RANK" in os.environ and not alone:
        die_with_launcher()
        join(backend, float(os.environ.get(START_SECONDS, "600")), device_id)
    else:
        store = dist.HashStore()
        dist.init_process_group(backend, store=store, rank=0, world_size=1, device_id=device_id)
    return Processes(torch_device, dist.get_rank(), dist.get_world_size())


def set_allocator_default() -> None:
    """Lets the GPU allocator grow its segments, unless the user has configured it.

    Blocks of any size then share one range of addresses, so that stages with different sequence
    lengths leave no gaps that are too small for the next one. torch reads the variable when it
    first allocates on a GPU. ROCm is left as it is.
    """
    if torch.version.hip is None and not any(name in os.environ for name in ALLOCATOR):
        os.environ[ALLOCATOR[0]] = "expandable_segments:True"


def own_gpu() -> torch.device:
    """Returns the GPU of this rank. Raises InputError if this machine has fewer GPUs than ranks."""
    index, count = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if index >= count:
        error = InputError(
            f"device=cuda: rank {os.environ.get('RANK', '0')} needs GPU {index}, but this machine "
            f"has {count}. Start at most {count} processes on it."
        )
        error.every_rank = True
        raise error
    return torch.device("cuda", index)


def barrier() -> None:
    """Waits until all ranks have called it; on the CPU, so that no GPU work is waited for.

    `dist.barrier` of a group that is bound to a GPU takes NCCL, which waits for all kernels, and
    whose timeout ends the process without an error.
    """
    dist.all_reduce(torch.zeros(1))


def die_with_launcher() -> None:
    """Makes the kernel send SIGTERM to this process when `torchrun` dies.

    Ranks run in their own sessions, so they would outlive a launcher that was killed.
    """
    parent = os.getppid()
    if "TORCHELASTIC_RUN_ID" in os.environ and sys.platform == "linux":
        die_with_parent(parent, signal.SIGTERM)


def die_with_parent(parent: int, number: signal.Signals) -> None:
    """Makes the kernel send a signal to this process when its parent ends, for whatever reason."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, number)
    if os.getppid() != parent:  # the parent ended before the call
        os.kill(os.getpid(), number)


def join(backend: str, timeout_seconds: float, device_id: torch.device | None = None) -> None:
    """Joins the process group. Raises RunAborted if not all ranks join within the timeout.

    device_id: the GPU of this rank, if it has one.
    """
    timeout = timedelta(seconds=timeout_seconds)
    try:
        dist.init_process_group(backend, timeout=timeout, device_id=device_id)
    except (RuntimeError, OSError) as error:
        env = os.environ
        address = f"{env.get('MASTER_ADDR')}:{env.get('MASTER_PORT')}"
        fault = RunAborted(
            f"rank {env['RANK']} of {env.get('WORLD_SIZE')} did not reach the rendezvous at "
            f"{address} within {timeout_seconds:.0f} s ({str(error).splitlines()[0][:200]}). Check "
            "that rank 0 runs there, that no other program uses the port, and that all ranks were "
            f"started. If ranks start slowly, raise the environment variable {START_SECONDS}.",
            EXIT_HANG,
        )
        fault.every_rank = True
        raise fault from None
