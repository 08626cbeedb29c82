"""Checks what a job would lose on nodes whose disks vanish with them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from conf.errors import InputError
from launch.job_check import check_run
from launch.sky.settings import SkyCluster, SkyConfig
from launch.training import Training

if TYPE_CHECKING:
    from pretrain.config import PretrainConfig


def check_job(config: SkyConfig, cluster: SkyCluster, run: Training) -> None:
    """Raises InputError if the run would be refused on the nodes, or could not continue there."""
    check_run(
        run,
        nodes=config.nodes,
        nproc=config.nproc or cluster.gpus_per_node,
        device=cluster.device,
        gpu_memory_gib=cluster.gpu_memory_gib,
        packages=False,
    )
    settings = run.settings()
    check_inputs(cluster, settings)
    check_run_dir(config, cluster, settings)


def check_inputs(cluster: SkyCluster, settings: PretrainConfig) -> None:
    """Raises InputError if the job reads a path that the nodes do not have."""
    inputs = {
        "data.folder": settings.data.folder,
        "init_from": settings.init_from,
        "evaluation.task_folder": settings.evaluation.task_folder,
        "objective.teacher": getattr(settings.objective, "teacher", None),
        "branch_from": settings.branch_from,
    }
    for key, value in inputs.items():
        if value and "://" not in str(value) and not cluster.is_mounted(str(value)):
            raise InputError(
                f"{key}={value}: the nodes do not have this path. Give a URL (s3://...), or a path "
                f"below {mounts(*cluster.sky.volumes, *cluster.sky.file_mounts)}."
            )


def check_run_dir(config: SkyConfig, cluster: SkyCluster, settings: PretrainConfig) -> None:
    """Raises InputError if checkpoints could not be written, or would vanish with the nodes.

    All nodes write one checkpoint together, so that several need a folder that they share. One node
    can also copy its checkpoints to an object store, from which every start restores them.
    """
    run_dir = settings.run_dir
    volumes = mounts(*cluster.sky.volumes)
    if cluster.in_volume(run_dir):
        return
    if config.nodes > 1:
        raise InputError(
            f"run_dir={run_dir}: {config.nodes} nodes write checkpoints together, and do not share "
            f"this folder. Give a run_dir below {volumes}."
        )
    if not settings.checkpoint.copy_to:
        raise InputError(
            f"run_dir={run_dir}: this folder vanishes with the node. Give "
            "checkpoint.copy_to=s3://bucket/run, from which a new start restores the checkpoints, "
            f"or a run_dir below {volumes}."
        )
    if Path(run_dir).is_absolute():
        raise InputError(
            f"run_dir={run_dir}: an absolute path of this machine. Give a relative one, such as "
            f"runs/{settings.name}, which becomes a folder of the node."
        )


def mounts(*paths: str) -> str:
    """Returns mounted paths for a message."""
    return " or ".join(paths) if paths else "a path that sky.volumes in the cluster's file mounts"
