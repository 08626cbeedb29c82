"""`python -m launch.slurm.requeue FOLDER`: puts this job back into the queue, without the nodes
that the node check named in `FOLDER/exclude`."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

TRIES = 20


def requeue(folder: Path, job: str) -> None:
    """SLURM changes a job's excluded nodes only while it waits: so it is held, changed and
    released, by this process, which lives a few seconds longer than its job's script."""
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
