"""The page that a finished run ends in: `python -m eval report`, as a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

NAME = "report.html"
SECONDS = 120


def write_page(run_dir: Path) -> None:
    """Writes report.html of the run folder; rank 0 calls it. Where that fails a line says so: the
    run is whole without it."""
    command = [sys.executable, "-m", "eval", "report", f"run={run_dir}", f"out={run_dir / NAME}"]
    command.append("overwrite=true")
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
        said = "" if done.returncode == 0 else (done.stderr.strip() or "no reason given")
    except (OSError, subprocess.TimeoutExpired) as error:
        said = str(error)
    if said:
        last = said.splitlines()[-1].removeprefix("error: ")
        print(f"warning: no report was written ({last})", file=sys.stderr, flush=True)
    else:
        print(f"report: {run_dir / NAME}", flush=True)
