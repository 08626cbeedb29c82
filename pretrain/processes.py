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

from conf.errors import EXIT_HANG, RunAborted
from pretrain.config import device_of

START_SECONDS = "HEADWATER_START_SECONDS"
"""Environment variable for the seconds that ranks wait for each other at the start; default 600."""
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


def start(device: str) -> Processes:
    """Joins the process group that `torchrun` set up, or creates one for this process alone."""
    available = "cuda" if torch.cuda.is_available() else "cpu"
    use_cuda = device_of(device, available) == "cuda"
    backend = "cpu:gloo,cuda:nccl" if use_cuda else "gloo"
    if "RANK" in os.environ:
        die_with_launcher()
        join(backend, float(os.environ.get(START_SECONDS, "600")))
    else:
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    torch_device = torch.device("cpu")
    if use_cuda:
        torch_device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(torch_device)
    return Processes(torch_device, dist.get_rank(), dist.get_world_size())


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


def join(backend: str, timeout_seconds: float) -> None:
    """Joins the process group. Raises RunAborted if not all ranks join within the timeout."""
    try:
        dist.init_process_group(backend, timeout=timedelta(seconds=timeout_seconds))
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
