"""Checks a training job before it is queued, as `python -m pretrain` would check it."""

from __future__ import annotations

import sys

from conf.errors import InputError
from conf.text import GIB
from launch.slurm.settings import Cluster, SlurmConfig
from launch.training import Training
from pretrain.checks import Job
from pretrain.config import device_of


def check_job(config: SlurmConfig, cluster: Cluster, run: Training) -> None:
    """Raises InputError if the run would be refused on a number of nodes that the job may get.

    These numbers are `min_nodes` to `nodes`.
    """
    from pretrain.preflight import preflight  # imports torch, which `launch status` does without

    settings = run.settings()
    nproc = config.nproc or cluster.gpus_per_node
    for nodes in range(config.nodes, (config.min_nodes or config.nodes) - 1, -1):
        job = Job(
            nodes * nproc,
            device_of(settings.device, cluster.device),
            here=False,
            packages=not (cluster.slurm.container or cluster.slurm.python),
            ranks_per_node=nproc,
            memory_bytes=int(cluster.gpu_memory_gib * GIB) or sys.maxsize,
        )
        try:
            preflight(settings, job)
        except InputError as error:
            if nodes == config.nodes:
                raise
            raise InputError(f"min_nodes={config.min_nodes}: with nodes={nodes}, {error}") from None
