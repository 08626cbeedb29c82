"""Checks a training job before it is queued."""

from __future__ import annotations

from conf.errors import InputError
from launch.job_check import check_run
from launch.slurm.settings import Cluster, SlurmConfig
from launch.training import Training


def check_job(config: SlurmConfig, cluster: Cluster, run: Training) -> None:
    """Raises InputError if the run would be refused on a number of nodes that the job may get.

    These numbers are `min_nodes` to `nodes`.
    """
    for nodes in range(config.nodes, (config.min_nodes or config.nodes) - 1, -1):
        try:
            check_run(
                run,
                nodes=nodes,
                nproc=config.nproc or cluster.gpus_per_node,
                device=cluster.device,
                gpu_memory_gib=cluster.gpu_memory_gib,
                packages=not (cluster.slurm.container or cluster.slurm.python),
            )
        except InputError as error:
            if nodes == config.nodes:
                raise
            raise InputError(f"min_nodes={config.min_nodes}: with nodes={nodes}, {error}") from None
