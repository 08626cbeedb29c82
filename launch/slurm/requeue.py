"""Requeues this job without the nodes that the node check wrote to `FOLDER/exclude`.

The job script runs `python -m launch.slurm.requeue FOLDER`.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

TRIES = 20


def requeue(folder: Path, job: str) -> None:
    """Requeues the job, without the nodes that are listed in the file `exclude`, if any.

    SLURM changes the excluded nodes of a job only while it is pending. The job is therefore held,
    changed and released by this process, which outlives the job script by a few seconds.
    """
    exclude = folder / "exclude"
    nodes = ",".join(exclude.read_text().split()) if exclude.exists() else ""
    if not nodes:
        subprocess.run(["scontrol", "requeue", job], check=True)
        return
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    subprocess.run(["scontrol", "requeuehold", job], check=True)
    for _ in range(TRIES):
        change = ["scontrol", "update", f"JobId={job}", f"ExcNodeList={nodes}"]
        if subprocess.run(change, stderr=subprocess.DEVNULL).returncode == 0:
            break
        time.sleep(0.25)
    subprocess.run(["scontrol", "release", job], check=True)


if __name__ == "__main__":
    requeue(Path(sys.argv[1]), os.environ["SLURM_JOB_ID"])
