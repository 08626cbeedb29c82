"""Settings of `python -m launch slurm` and the file of a cluster."""

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
"""Minutes, minutes:seconds, hours:minutes:seconds, days-hours and so on, as sbatch has them."""


def check_time(key: str, value: str | None) -> None:
    """Raises InputError where a time limit is none of SLURM's forms."""
    if value is not None and not TIME.fullmatch(value):
        raise InputError(
            f"{key}={value} is not a time limit of SLURM. Write hours as 12:00:00, days as "
            "2-00:00:00, or minutes as 90."
        )


@dataclass
class SlurmConfig:
    """A training job, or with `-- --multirun key=a,b ...` one for each point of a sweep. Behind
    `--` stand overrides of `python -m pretrain` (its --help shows them).

    cluster: a file of `conf/cluster` by its name, or any file by its path.
    nodes: of the job; min_nodes: with fewer left it starts all the same.
    nproc: processes a node, null for one a GPU.
    time: limit in SLURM's form (`2-00:00:00`), null for the cluster's; partition: likewise.
    after: ids of jobs that must have ended well before.
    node_check: compares and times the nodes before the first step.
    dry_run: prints the job, and writes and submits nothing.
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
            raise InputError(f"nodes={self.nodes}, expected 1 or more.")
        if self.min_nodes is not None and not 1 <= self.min_nodes <= self.nodes:
            raise InputError(f"min_nodes={self.min_nodes}, expected 1 to nodes={self.nodes}.")
        check_time("time", self.time)


@dataclass
class SlurmSettings:
    """The cluster's file has gpus_per_node, gpu_memory_gib, device (cuda or cpu) and slurm, which
    says what jobs ask for and set up:

    partition, account, qos, cpus_per_task, mem: as sbatch knows them.
    time: limit of a job. signal_seconds: before it, when the ranks are told to save and stop.
    shutdown_seconds: that a save may take after a signal before torchrun kills.
    gpus: how GPUs are asked for, `gpus-per-node`, `gres` or `none` (whole nodes, CPUs).
    sbatch: further options as lines, without `#SBATCH`.
    modules: to load. setup: shell lines before the run. env: exported, NCCL's settings too.
    container: an image for pyxis' `--container-image`; mounts: for it, besides the folder of
        submission, where it works, and the run's. The job's own script needs a python3 outside.
    python: that runs the job, null for the one that submits it, or the container's `python`.
    max_attempts: of starts in a row without a new checkpoint, then the job gives up.
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
                f"slurm.shutdown_seconds={self.shutdown_seconds}, expected 1 to signal_seconds="
                f"{self.signal_seconds}: SLURM kills so long after its signal, the save before it."
            )


@dataclass(frozen=True)
class Cluster:
    """What a job needs of a cluster's file."""

    name: str
    gpus_per_node: int
    device: str
    gpu_memory_gib: float
    slurm: SlurmSettings


def read_cluster(given: str) -> Cluster:
    """Reads a file of `conf/cluster` by name, or any by path; raises InputError."""
    whole = read_cluster_file(given)
    try:
        merged = OmegaConf.merge(OmegaConf.structured(SlurmSettings), whole.get("slurm") or {})
        slurm: Any = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        raise InputError(f"cluster={given}: slurm: {sentence(error, SlurmSettings)}") from None
    return Cluster(
        name=str(whole.get("name", Path(given).stem)),
        gpus_per_node=int(whole.get("gpus_per_node", ClusterConfig.gpus_per_node)),
        device=str(whole.get("device", ClusterConfig.device)),
        gpu_memory_gib=float(whole.get("gpu_memory_gib", 0)),
        slurm=slurm,
    )
