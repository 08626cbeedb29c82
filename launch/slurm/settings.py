"""Configuration of `python -m launch slurm`, and the reader of a cluster's file."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from conf.entry import sentence
from conf.errors import InputError, one_of
from launch.plan.cluster import ClusterConfig, read_cluster_file

TIME = re.compile(r"\d+(:\d+){0,2}|\d+-\d+(:\d+){0,2}|INFINITE|UNLIMITED", re.IGNORECASE)
"""Time limits of sbatch: minutes, minutes:seconds, hours:minutes:seconds, days-hours and so on."""


def check_time(key: str, value: str | None) -> None:
    """Raises InputError unless a time limit has one of SLURM's forms."""
    if value is not None and not TIME.fullmatch(value):
        raise InputError(
            f"{key}={value}: not a time limit of SLURM. Write hours as 12:00:00, days as "
            "2-00:00:00, or minutes as 90."
        )


@dataclass
class SlurmConfig:
    """A training job, or with `-- --multirun key=a,b ...` one job per point of a sweep.

    The overrides of `python -m pretrain` follow `--` (its --help shows them).

    cluster: the name of a file in `conf/cluster`, or the path of any file.
    nodes: number of nodes.
    min_nodes: smallest number of nodes to start with; null for `nodes`.
    nproc: number of processes per node; null for one per GPU.
    time: time limit in SLURM's form (`2-00:00:00`); null for the cluster's.
    partition: partition of the job; null for the cluster's.
    after: ids of jobs that must succeed first.
    node_check: compares and times the nodes before the first step.
    dry_run: prints the job without writing or submitting anything.
    """

    cluster: str = MISSING
    nodes: int = 1
    min_nodes: int | None = None
    nproc: int | None = None
    time: str | None = None
    partition: str | None = None
    after: list[str] = field(default_factory=list)
    node_check: bool = True
    dry_run: bool = False

    def __post_init__(self) -> None:
        if self.nodes < 1:
            raise InputError(f"nodes={self.nodes}: expected 1 or more.")
        if self.min_nodes is not None and not 1 <= self.min_nodes <= self.nodes:
            raise InputError(f"min_nodes={self.min_nodes}: expected 1 to nodes={self.nodes}.")
        check_time("time", self.time)


@dataclass
class SlurmSettings:
    """Resources and environment of jobs, under the key `slurm` of a cluster's file.

    The file also has gpus_per_node, gpu_memory_gib and device (cuda or cpu).

    partition, account, qos, cpus_per_task, mem: options of sbatch.
    time: time limit of a job.
    signal_seconds: seconds before the limit at which the ranks are signalled to save and stop.
    shutdown_seconds: seconds for the save after the signal, before torchrun kills the ranks.
    gpus: the option that requests GPUs: `gpus-per-node`, `gres` or `none` (whole nodes, CPUs).
    sbatch: additional options as lines, without `#SBATCH`.
    modules: environment modules to load.
    setup: shell lines that are executed before the run.
    env: environment variables to export, such as those of NCCL.
    container: an image for pyxis' `--container-image`. The job script itself runs outside of the
        container and needs a python3 on the host.
    mounts: mounts of the container, in addition to the folder of submission and the run folder.
    python: the Python of the job; null for the one that submits it, or for `python` in a
        container.
    max_attempts: number of starts in a row without a new checkpoint after which the job gives up.
    """

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    time: str | None = None
    cpus_per_task: int | None = None
    mem: str | None = None
    gpus: str = "gpus-per-node"
    signal_seconds: int = 300
    shutdown_seconds: int = 240
    sbatch: list[str] = field(default_factory=list)
    modules: list[str] = field(default_factory=list)
    setup: list[str] = field(default_factory=list)
    env: dict[str, str] = field(default_factory=dict)
    container: str | None = None
    mounts: list[str] = field(default_factory=list)
    python: str | None = None
    max_attempts: int = 3

    def __post_init__(self) -> None:
        check_time("slurm.time", self.time)
        one_of("slurm.gpus", self.gpus, ("gpus-per-node", "gres", "none"))
        if not 0 < self.shutdown_seconds <= self.signal_seconds:
            raise InputError(
                f"slurm.shutdown_seconds={self.shutdown_seconds}: expected 1 to "
                f"slurm.signal_seconds={self.signal_seconds}, the time from SLURM's signal until "
                "SLURM kills the job."
            )


@dataclass(frozen=True)
class Cluster:
    """The keys of a cluster's file that a job needs."""

    name: str
    gpus_per_node: int
    device: str
    gpu_memory_gib: float
    slurm: SlurmSettings


def read_cluster(given: str) -> Cluster:
    """Returns the cluster of a file, which is given as a name in `conf/cluster` or as a path.

    Raises:
        InputError: the file is missing or invalid.
    """
    content = read_cluster_file(given)
    try:
        merged = OmegaConf.merge(OmegaConf.structured(SlurmSettings), content.get("slurm") or {})
        slurm: Any = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        raise InputError(f"cluster={given}: slurm: {sentence(error, SlurmSettings)}") from None
    return Cluster(
        name=str(content.get("name", Path(given).stem)),
        gpus_per_node=int(content.get("gpus_per_node", ClusterConfig.gpus_per_node)),
        device=str(content.get("device", ClusterConfig.device)),
        gpu_memory_gib=float(content.get("gpu_memory_gib", 0)),
        slurm=slurm,
    )
