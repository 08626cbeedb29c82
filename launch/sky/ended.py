"""Decides on the first node whether a job starts again: `python -m launch.sky.ended`.

The rules are those of SLURM jobs (`launch.slurm.verdict`). New nodes have no memory of earlier
starts; if the run's folder vanishes with its nodes, the number of starts without progress is kept
next to the copies of its checkpoints.
"""

from __future__ import annotations

import sys
from pathlib import Path

from conf.errors import EXIT_DONE, EXIT_FAILED, EXIT_REQUEUE
from launch.slurm.verdict import ATTEMPTS, verdict
from launch.training import outcome


def ended(run_dir: Path, code: int, max_attempts: int, copy_to: str | None = None) -> int:
    """Prints the verdict on a run that ended with a code, and returns the exit code of the job.

    It is EXIT_REQUEUE to start again, and else the run's own.
    """
    record = run_dir / "slurm" / ATTEMPTS
    record.parent.mkdir(parents=True, exist_ok=True)
    if copy_to:
        fetch(f"{copy_to.rstrip('/')}/{ATTEMPTS}", record)
    found = verdict(run_dir, code, max_attempts)
    if copy_to and record.exists():
        upload(record, f"{copy_to.rstrip('/')}/{ATTEMPTS}")
    print(f"== ended with {code}: {found}", flush=True)
    if found.startswith("done"):
        return EXIT_DONE
    if found.startswith("again"):
        return EXIT_REQUEUE
    own = (outcome(run_dir) or {"code": code})["code"]
    return int(own) if own not in (EXIT_DONE, EXIT_REQUEUE) else EXIT_FAILED


def fetch(url: str, path: Path) -> None:
    """Downloads a small file if there is one."""
    import fsspec

    try:
        with fsspec.open(url, "rb") as file:
            path.write_bytes(file.read())
    except FileNotFoundError:
        pass


def upload(path: Path, url: str) -> None:
    """Uploads a small file."""
    import fsspec

    with fsspec.open(url, "wb") as file:
        file.write(path.read_bytes())


if __name__ == "__main__":
    given = sys.argv[1:]
    sys.exit(ended(Path(given[0]), int(given[1]), int(given[2]), *given[3:]))
