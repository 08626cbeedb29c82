"""The managed jobs of a run, as SkyPilot tells them."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from functools import cache
from pathlib import Path
from typing import Any

from conf.errors import InputError
from launch.slurm.submit import JOBS, Job

ENDED = ("SUCCEEDED", "CANCELLED", "CANCELLING", "FAILED")
"""States, or beginnings of states, of jobs that will not start again."""
MIRRORED = "step_*/manifest.json"


def record(run_dir: Path, name: str) -> None:
    """Records that a job of a name was launched for a run."""
    with (run_dir / "sky" / JOBS).open("a") as file:
        file.write(json.dumps({"job": name, "script": "sky", "time": time.time()}) + "\n")


def active_jobs(run_dir: Path) -> list[Job]:
    """Returns the jobs of a run that wait or run, or [] without SkyPilot or if it knows none."""
    path = run_dir / "sky" / JOBS
    if shutil.which("sky") is None or not path.exists():
        return []
    name = json.loads(path.read_text().splitlines()[-1])["job"]
    found = [job for job in queue() if job["job_name"] == name]
    return [
        Job(str(job["job_id"]), "job", str(job["status"]).upper())
        for job in found
        if not str(job["status"]).upper().startswith(ENDED)
    ]


@cache
def queue() -> list[dict[str, Any]]:
    """Returns the unfinished managed jobs of this user.

    Raises:
        InputError: SkyPilot does not answer.
    """
    command = ["sky", "jobs", "queue", "--skip-finished", "--output", "json"]
    done = subprocess.run(command, capture_output=True, text=True)
    text = done.stdout[done.stdout.find("[") :] if "[" in done.stdout else ""
    try:
        found: list[dict[str, Any]] = json.loads(text or "[]")
    except ValueError:
        found = []
        done.returncode = done.returncode or 1
    if done.returncode:
        message = " ".join((done.stderr or done.stdout).split())[-300:]
        raise InputError(f"`{' '.join(command)}` failed ({message}). Run `sky check`.")
    return found


def cancel(jobs: list[Job]) -> None:
    """Cancels jobs."""
    subprocess.run(["sky", "jobs", "cancel", "--yes", *(job.number for job in jobs)], check=True)
    queue.cache_clear()


def copied_step(run_dir: Path) -> int | None:
    """Returns the newest step in the object store to which the run copies its checkpoints.

    It is None if the run copies none, or the store does not answer.
    """
    from omegaconf import OmegaConf

    path = run_dir / "sky" / "config.yaml"
    content: Any = OmegaConf.load(path) if path.exists() else {}
    url = (content.get("checkpoint") or {}).get("copy_to")
    if not url:
        return None
    from fsspec.core import url_to_fs

    try:
        system, root = url_to_fs(url)
        found = system.glob(f"{root}/{MIRRORED}") + system.glob(f"{root}/checkpoints/{MIRRORED}")
    except (OSError, ImportError, ValueError):
        return None
    return max((int(Path(one).parent.name.removeprefix("step_")) for one in found), default=None)
