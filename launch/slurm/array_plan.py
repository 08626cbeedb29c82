"""Reads the array of jobs that `python -m data_pipeline plan` wrote for a preparation."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

from conf.errors import InputError
from conf.output_kinds import PREPARATION_PLAN, read_json
from launch.slurm.settings import Cluster


@dataclass(frozen=True)
class ArrayPlan:
    """An array that is submitted once per phase.

    tasks: number of jobs.
    cpus: CPU cores of a job.
    memory_mib: memory of a job.
    minutes: time limit of the jobs of each phase, in order.
    """

    tasks: int
    cpus: int
    memory_mib: int
    minutes: list[int]

    def resources(self, cluster: Cluster) -> Cluster:
        """Returns the cluster with the cores and memory of the jobs of this array.

        A memory limit in the cluster's file is retained.
        """
        slurm = replace(
            cluster.slurm,
            cpus_per_task=self.cpus,
            mem=cluster.slurm.mem or f"{self.memory_mib}M",
        )
        return replace(cluster, slurm=slurm)


def read_array_plan(path: str) -> ArrayPlan:
    """Returns the array in a plan. Raises InputError if the file is not a plan of a preparation."""
    if not PREPARATION_PLAN.is_made(Path(path)):
        raise InputError(
            f"data_plan={path}: not a plan of a preparation. Write one with "
            "python -m data_pipeline plan corpus=... tokenizer=... out=plan.json."
        )
    array = read_json(Path(path))["array"]
    return ArrayPlan(
        array["tasks"],
        array["cpus"],
        math.ceil(array["memory_bytes"] / 2**20),
        [math.ceil(seconds / 60) for seconds in array["limits"].values()],
    )
