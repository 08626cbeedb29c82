"""Decides whether a job whose run has ended is requeued.

The job script runs `python -m launch.slurm.verdict RUN_DIR CODE MAX_ATTEMPTS`, which prints one
line that begins with `done`, `again` or `failed`. Bad input and faults that need manual attention
are final. After anything else, such as a requested stop (85), unavailable storage (75), a hang (87)
or a lost node, the job starts again, unless more than MAX_ATTEMPTS starts in a row made no new
checkpoint.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from conf.errors import (
    EXIT_BAD_INPUT,
    EXIT_CHECKPOINT,
    EXIT_CORRUPT,
    EXIT_DONE,
    EXIT_GAVE_UP,
    EXIT_REQUEUE,
)
from conf.files import write_text
from launch.training import outcome

ATTEMPTS = "attempts.json"
"""Name of the file with the number of starts in a row without a new checkpoint."""
FINAL = (EXIT_BAD_INPUT, EXIT_CHECKPOINT, EXIT_GAVE_UP, EXIT_CORRUPT)


def newest_step(run_dir: Path) -> int:
    """Returns the step of the newest complete checkpoint, or -1."""
    found = (run_dir / "checkpoints").glob("step_*/manifest.json")
    return max((int(path.parent.name.removeprefix("step_")) for path in found), default=-1)


def fallback_cause(run_dir: Path) -> str:
    """Returns the cause to report if the run itself has not recorded why it ended."""
    path = run_dir / "slurm" / "nodes.json"
    problems = json.loads(path.read_text())["problems"] if path.exists() else {}
    if problems:
        return f"the node check excluded {', '.join(problems)}"
    return "the run recorded no cause"


def verdict(run_dir: Path, code: int, max_attempts: int) -> str:
    """Returns the verdict, and records how many starts in a row made no new checkpoint."""
    if code == EXIT_DONE:
        return "done"
    if (run_dir / "STOP").exists():
        return f"failed: stopped by {run_dir / 'STOP'}"
    ended = outcome(run_dir) or {"code": code, "cause": fallback_cause(run_dir)}
    if ended["code"] in FINAL:
        return f"failed: {ended['cause']}"
    path = run_dir / "slurm" / ATTEMPTS
    before = json.loads(path.read_text()) if path.exists() else {"step": None, "attempts": 0}
    step = newest_step(run_dir)
    attempts = 1 if step != before["step"] else int(before["attempts"] or 0) + 1
    write_text(path, json.dumps({"step": step, "attempts": attempts}))
    if ended["code"] != EXIT_REQUEUE and attempts > max_attempts:
        return f"failed: {attempts} starts without a new checkpoint: {ended['cause']}"
    return f"again: {ended['cause']}"


if __name__ == "__main__":
    print(verdict(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])))
