"""Configuration of `python -m launch sky`, and of jobs under `sky` in a cluster's file."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from conf.entry import sentence
from conf.errors import InputError
from launch.plan.cluster import ClusterConfig, read_cluster_file


@dataclass
class SkyConfig:
    """A training run as a managed job of SkyPilot.

    The overrides of `python -m pretrain` follow `--` (its --help shows them).

    cluster: the name of a file in `conf/cluster`, or the path of any file, with a key `sky`.
    nodes: number of nodes.
    nproc: number of processes per node; null for one per GPU.
    dry_run: prints the task without writing or launching anything.
    """

    cluster: str = MISSING
    nodes: int = 1
    nproc: int | None = None
    dry_run: bool = False

    def __post_init__(self) -> None:
        if self.nodes < 1:
            raise InputError(f"nodes={self.nodes}: expected 1 or more.")
        if self.nproc is not None and self.nproc < 1:
            raise InputError(f"nproc={self.nproc}: expected 1 or more.")


@dataclass
class SkySettings:
    """Resources and environment of jobs, under the key `sky` of a cluster's file.

    The file also has gpus_per_node, gpu_memory_gib and device (cuda or cpu).

    infra: where to rent, such as aws, gcp/us-central1 or kubernetes; null for the cheapest that
        SkyPilot has access to.
    accelerators: GPUs of a node by SkyPilot's names, such as H100:8.
    cpus, memory: least number of cores and GiB of a node, such as 96+.
    use_spot: rents nodes that may be taken away at any moment, for less.
    image: image of the nodes, such as docker:nvcr.io/nvidia/pytorch:25.09-py3.
    disk_gb: size of the disk of a node.
    file_mounts: buckets or files of the submitting machine to read, by their path on the nodes.
    volumes: volumes of SkyPilot, by their path on the nodes, which share and do not end with them.
    setup: shell lines that install Headwater in the copy of its code; empty for a virtual
        environment with the versions of constraints.txt.
    env: environment variables to export, such as those of NCCL.
    secrets: names of environment variables that are passed on from the submitting machine, and
        written nowhere, such as WANDB_API_KEY and AWS_SECRET_ACCESS_KEY.
    python: the Python of the job; null for that of the default `setup`, or python3 with another.
    max_attempts: number of starts in a row without a new checkpoint after which the job gives up.
    """

    infra: str | None = None
    accelerators: str | None = None
    cpus: str | None = None
    memory: str | None = None
    use_spot: bool = False
    image: str | None = None
    disk_gb: int = 512
    file_mounts: dict[str, str] = field(default_factory=dict)
    volumes: dict[str, str] = field(default_factory=dict)
    setup: list[str] = field(default_factory=list)
    env: dict[str, str] = field(default_factory=dict)
    secrets: list[str] = field(default_factory=list)
    python: str | None = None
    max_attempts: int = 3

    def __post_init__(self) -> None:
        for key in ("file_mounts", "volumes"):
            for path in getattr(self, key):
                if not path.startswith("/"):
                    raise InputError(
                        f"sky.{key}={path}: not an absolute path on the nodes. Begin it with /."
                    )


@dataclass(frozen=True)
class SkyCluster:
    """The keys of a cluster's file that a job needs."""

    name: str
    gpus_per_node: int
    device: str
    gpu_memory_gib: float
    sky: SkySettings

    def is_mounted(self, path: str) -> bool:
        """Returns whether a path of a node is in a volume, or among the mounted files."""
        return self.in_volume(path) or any(map(Path(path).is_relative_to, self.sky.file_mounts))

    def in_volume(self, path: str) -> bool:
        """Returns whether a path of a node is in a volume."""
        return any(map(Path(path).is_relative_to, self.sky.volumes))


def read_sky_cluster(given: str) -> SkyCluster:
    """Returns the cluster of a file, which is given as a name in `conf/cluster` or as a path.

    Raises:
        InputError: the file is missing or invalid, or lacks what a job needs.
    """
    content = read_cluster_file(given)
    if "sky" not in content:
        raise InputError(
            f"cluster={given}: the file has no key sky. Add it, with what docs/sky.md describes."
        )
    try:
        merged = OmegaConf.merge(OmegaConf.structured(SkySettings), content["sky"] or {})
        sky: Any = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        raise InputError(f"cluster={given}: sky: {sentence(error, SkySettings)}") from None
    device = str(content.get("device", ClusterConfig.device))
    if device == "cuda" and not sky.accelerators:
        raise InputError(
            f"cluster={given}: sky.accelerators is not set. Name the GPUs of a node as SkyPilot "
            "does, such as H100:8 (`sky show-gpus` lists them), or set device: cpu."
        )
    return SkyCluster(
        name=str(content.get("name", Path(given).stem)),
        gpus_per_node=int(content.get("gpus_per_node", ClusterConfig.gpus_per_node)),
        device=device,
        gpu_memory_gib=float(content.get("gpu_memory_gib", 0)),
        sky=sky,
    )
