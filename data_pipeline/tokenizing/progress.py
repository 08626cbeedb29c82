"""The progress of a preparation, read from its work folder.

`write_outline` records what the work consists of, `write_task_count` how many tasks a phase has
once it begins, and every finished task leaves a marker with its time. So the state of all jobs
together can be read by anyone who sees the folder.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from data_pipeline.files import write_json
from data_pipeline.text.units import Unit

OUTLINE = "outline.json"
BY_UNIT = ("scan", "encode")
"""Phases that read all text, with one task per unit of the corpus."""
RECENT_SECONDS = 600
"""Time before the last finished task over which the speed is measured."""
QUIET_SECONDS = 120
"""Least time without a finished task after which a preparation counts as not running."""


@dataclass(frozen=True)
class Progress:
    """The progress of a preparation.

    Attributes:
        out: the output folder.
        phase: name of the first phase that is not done, or `manifest` if all are.
        done: share of the phase that is done, over all jobs.
        bytes_per_second: speed of all jobs together in phases that read text, if it is known.
        seconds_left: time left in the phase at this speed.
        jobs: number of jobs that have worked in the folder.
        is_active: whether a task has ended lately.
    """

    out: Path
    phase: str
    done: float
    bytes_per_second: float | None
    seconds_left: float | None
    jobs: int
    is_active: bool


def write_outline(work: Path, units: Sequence[Unit], phases: Sequence[str]) -> None:
    """Records the phases and the sizes of the units in a work folder."""
    content = {"phases": list(phases), "unit_bytes": [unit.bytes for unit in units]}
    write_json(work / OUTLINE, content)


def write_task_count(work: Path, phase: str, tasks: int) -> None:
    """Records the number of tasks of a phase in a work folder."""
    write_json(work / f"{phase}.tasks", tasks)


def find_work(folder: Path) -> list[Path]:
    """Returns the work folders of unfinished preparations in a folder, or the folder itself.

    They are looked for two levels deep, because a folder of corpora can hold very many files.
    """
    found = [path.parent for prefix in ("", "*/", "*/*/") for path in folder.glob(prefix + OUTLINE)]
    return sorted(path for path in found if path.name.endswith(".partial"))


def read_progress(work: Path) -> Progress:
    """Returns the progress of the preparation in a work folder."""
    outline = json.loads((work / OUTLINE).read_text())
    sizes: list[int] = outline["unit_bytes"]
    phase, done, times = outline["phases"][0], 0.0, {}
    before = os.stat(work / "plan.json").st_mtime
    for phase in outline["phases"]:
        tasks = _tasks(work, phase, sizes)
        times = _finished(work / phase)
        weights = sizes if phase in BY_UNIT and any(sizes) else [1] * (tasks or 0)
        whole = sum(weights)
        done = sum(weights[task] for task in times) / whole if whole else 0.0
        if tasks is None or len(times) < tasks:
            break
        before = max([before, *times.values()])
    else:
        phase = "manifest"
    speed = _speed(times, before, sizes if phase in BY_UNIT else [])
    rate = _speed(times, before, [1] * (1 + max(times, default=0)))
    left = _left(done, len(times), speed, rate, sizes if phase in BY_UNIT else [])
    last = max([before, *times.values()])
    quiet = max(QUIET_SECONDS, 5 / rate if rate else 0.0)
    out = work.with_name(work.name.removesuffix(".partial"))
    jobs = len(list(work.glob("lock-*"))) or 1
    return Progress(out, phase, done, speed, left, jobs, time.time() - last < quiet)


def _tasks(work: Path, phase: str, sizes: list[int]) -> int | None:
    """Returns the number of tasks of a phase, None if it is not known yet."""
    if phase in BY_UNIT:
        return len(sizes)
    path = work / f"{phase}.tasks"
    return int(json.loads(path.read_text())) if path.is_file() else None


def _finished(folder: Path) -> dict[int, float]:
    """Returns the finished tasks of a phase, each with the time at which it ended."""
    if not folder.is_dir():
        return {}
    return {
        int(entry.name.removesuffix(".json")): entry.stat().st_mtime
        for entry in os.scandir(folder)
        if entry.name.removesuffix(".json").isdigit() and entry.name.endswith(".json")
    }


def _speed(times: dict[int, float], before: float, weights: list[int]) -> float | None:
    """Returns the weight of the tasks that ended per second lately, or None if it is not known.

    The time starts at the task before these or at the end of the previous phase. If the work was
    interrupted in between, it starts at the first of these tasks.
    """
    if not times or not weights:
        return None
    last = max(times.values())
    recent = {task: ended for task, ended in times.items() if ended >= last - RECENT_SECONDS}
    start = max([before, *(ended for task, ended in times.items() if task not in recent)])
    first = min(recent, key=lambda task: recent[task])
    if len(recent) > 1 and recent[first] - start > RECENT_SECONDS:
        start = recent.pop(first)
    return sum(weights[task] for task in recent) / (last - start) if last > start else None


def _left(
    done: float, finished: int, speed: float | None, rate: float | None, sizes: list[int]
) -> float | None:
    if sizes and speed:
        return sum(sizes) * (1 - done) / speed
    if rate and done:
        return finished * (1 / done - 1) / rate
    return None
