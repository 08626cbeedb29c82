"""Shows and stops studies, which `python -m launch study` runs."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

from launch.slurm.submit import active_jobs
from launch.training import outcome

FILES = ("study.yaml", "runs.json")
"""Files of the folder of a study that has started."""
STOP = "STOP"


def is_study(folder: Path) -> bool:
    """Returns True for the folder of a study that has started."""
    return all((folder / name).is_file() for name in FILES)


def study_lines(folder: Path) -> Iterator[str]:
    """Yields one line per study in a folder, which may itself be a study."""
    for path in sorted(found.parent for found in folder.rglob(FILES[1])):
        if not is_study(path):
            continue
        records = json.loads((path / FILES[1]).read_text())
        failed = [name for name, record in records.items() if record["code"] is not None]
        finished = [
            name
            for name in records
            if name not in failed and (outcome(path / "runs" / name) or {}).get("code") == 0
        ]
        page = ", page written" if (path / "study.html").is_file() else ""
        failures = f", {len(failed)} failed" if failed else ""
        stopped = ", stopped" if (path / STOP).exists() else ""
        counts = f"{len(finished)} of {len(records)} runs finished"
        yield f"study {path}: {counts}{failures}{stopped}{page}"


def stop_study(folder: Path, now: bool) -> None:
    """Stops a study and its runs, until the file STOP in its folder is removed.

    Args:
        folder: The folder of the study.
        now: Whether running jobs are cancelled without a checkpoint.
    """
    (folder / STOP).touch()
    for run_dir in sorted((folder / "runs").glob("*")):
        ended = outcome(run_dir)
        if ended is not None and ended["code"] == 0:
            continue
        jobs = active_jobs(run_dir)
        cancelled = [job.number for job in jobs if now or job.state == "PENDING"]
        if cancelled:
            subprocess.run(["scancel", *cancelled], check=True)
            print(f"Cancelled job {', '.join(cancelled)}.")
        (run_dir / STOP).touch()
    print(
        f"Wrote {folder / STOP}. The runs save a checkpoint and stop. Remove the file and repeat "
        "the command of the study to continue it."
    )
