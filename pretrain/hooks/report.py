"""Writes the report of a finished run with `python -m eval report`, in a separate process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

NAME = "report.html"
SECONDS = 120


def write_page(run_dir: Path) -> None:
    """Writes report.html to the run folder. Only rank 0 calls it.

    A failure is only printed as a warning, since the run is complete without the report.
    """
    command = [sys.executable, "-m", "eval", "report", f"run={run_dir}", f"out={run_dir / NAME}"]
    command.append("overwrite=true")
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
        said = "" if done.returncode == 0 else (done.stderr.strip() or "no reason given")
    except (OSError, subprocess.TimeoutExpired) as error:
        said = str(error)
    if said:
        last = said.splitlines()[-1].removeprefix("error: ")
        print(f"warning: report.html was not written ({last})", file=sys.stderr, flush=True)
    else:
        print(f"report: {run_dir / NAME}", flush=True)
