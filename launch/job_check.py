"""Checks a training run for the nodes of a job, as `python -m pretrain` would check it there."""

from __future__ import annotations

import sys

from conf.text import GIB
from launch.training import Training
from pretrain.checks import Job
from pretrain.config import device_of


def check_run(
    run: Training,
    *,
    nodes: int,
    nproc: int,
    device: str,
    gpu_memory_gib: float,
    packages: bool,
) -> None:
    """Raises InputError if the run would be refused on a number of nodes.

    Args:
        run: The run.
        nodes: Number of nodes.
        nproc: Number of processes per node.
        device: Device of the nodes, `cuda` or `cpu`.
        gpu_memory_gib: Memory of a GPU; 0 if it is unknown.
        packages: Whether the nodes have the packages of this process.
    """
    from pretrain.preflight import preflight  # imports torch, which `launch status` does without

    settings = run.settings()
    job = Job(
        nodes * nproc,
        device_of(settings.device, device),
        here=False,
        packages=packages,
        ranks_per_node=nproc,
        memory_bytes=int(gpu_memory_gib * GIB) or sys.maxsize,
    )
    preflight(settings, job)
