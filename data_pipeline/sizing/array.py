"""The array of jobs that finishes a preparation in a given time."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from conf.errors import InputError
from conf.text import format_duration

MARGIN = 1.5
"""Factor by which the jobs may be slower than planned and still end within the time."""
LEAST_LIMIT = 600
"""Smallest time limit of a job, in seconds."""
MOST_TASKS = 4096


@dataclass(frozen=True)
class PhaseLoad:
    """The work of a phase.

    Attributes:
        name: name of the phase.
        tasks: number of its tasks, each of which is done by one process.
        cpu_seconds: CPU seconds of all tasks.
        largest: CPU seconds of the largest task.
        memory_bytes: peak memory of a process.
    """

    name: str
    tasks: int
    cpu_seconds: float
    largest: float
    memory_bytes: int = 0


@dataclass(frozen=True)
class Array:
    """An array of `tasks` jobs with `cpus` cores each, submitted once per phase.

    `phases` holds the seconds that each phase takes, and `limits` the time limit of its jobs.
    `memory_bytes` is the memory of a job.
    """

    tasks: int
    cpus: int
    seconds: float
    phases: dict[str, float]
    limits: dict[str, int]
    memory_bytes: int

    def to_json(self) -> dict[str, Any]:
        """Returns the array as the content of a JSON file."""
        return asdict(self)


def seconds_of(load: PhaseLoad, jobs: int, cpus: int) -> float:
    """Returns the seconds of a phase: each job has every `jobs`-th task, and a process per core."""
    if not load.tasks:
        return 0.0
    mean = load.cpu_seconds / load.tasks
    in_turn = math.ceil(math.ceil(load.tasks / jobs) / cpus)
    return max(in_turn * mean, load.largest)


def plan_array(loads: list[PhaseLoad], start_seconds: float, hours: float, cpus: int) -> Array:
    """Returns the smallest array that finishes in `hours`, with a reserve of MARGIN.

    Raises:
        InputError: no number of jobs is enough.
    """

    def array(jobs: int) -> Array:
        phases = {load.name: start_seconds + seconds_of(load, jobs, cpus) for load in loads}
        limits = {
            name: max(LEAST_LIMIT, 60 * math.ceil(2 * MARGIN * seconds / 60))
            for name, seconds in phases.items()
        }
        memory = max(min(math.ceil(x.tasks / jobs), cpus) * x.memory_bytes for x in loads)
        return Array(jobs, cpus, sum(phases.values()), phases, limits, memory)

    allowed = hours * 3600 / MARGIN
    low, high = 1, MOST_TASKS
    best = array(high)
    if best.seconds > allowed:
        longest = max(loads, key=lambda load: load.largest)
        raise InputError(
            f"hours={hours:g}: expected {math.ceil(best.seconds * MARGIN / 360) / 10:g} or more, "
            f"with any number of jobs. One task of the phase {longest.name} alone takes "
            f"{format_duration(longest.largest)}. Raise hours, or lower corpus.shard_bytes if the "
            "files are plain."
        )
    while low < high:
        jobs = (low + high) // 2
        if array(jobs).seconds <= allowed:
            high = jobs
        else:
            low = jobs + 1
    return array(low)
