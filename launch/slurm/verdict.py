"""`python -m launch.slurm.verdict RUN_DIR CODE MAX_ATTEMPTS`: what becomes of a job whose run has
ended: one line that begins with `done`, `again` or `failed`.

An agreed stop (85), storage that did not answer (75) and a hang (87) start again; bad input and
what only a person can mend do not. Anything else, a lost node too, starts again as long as
checkpoints come: `max_attempts` starts in a row may bring none.
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

FINAL = (EXIT_BAD_INPUT, EXIT_CHECKPOINT, EXIT_GAVE_UP, EXIT_CORRUPT)


def newest_step(run_dir: Path) -> int:
    """Of the checkpoints that are whole; -1 where there is none."""
    found = (run_dir / "checkpoints").glob("step_*/manifest.json")
    return max((int(path.parent.name.removeprefix("step_")) for path in found), default=-1)


def unsaid(run_dir: Path) -> str:
    """The cause of an end of which the run itself says nothing."""
    path = run_dir / "slurm" / "nodes.json"
    problems = json.loads(path.read_text())["problems"] if path.exists() else {}
    if problems:
        return f"the node check named {', '.join(problems)}"
    return "no word from the run"


def verdict(run_dir: Path, code: int, max_attempts: int) -> str:
    """Decides, and remembers how many starts in a row brought no checkpoint."""
    if code == EXIT_DONE:
        return "done"
    if (run_dir / "STOP").exists():
        return f"failed: stopped by {run_dir / 'STOP'}"
    ended = outcome(run_dir) or {"code": code, "cause": unsaid(run_dir)}
    if ended["code"] in FINAL:
        return f"failed: {ended['cause']}"
    path = run_dir / "slurm" / "attempts.json"
    was = json.loads(path.read_text()) if path.exists() else {"step": None, "attempts": 0}
    step = newest_step(run_dir)
    attempts = 1 if step != was["step"] else int(was["attempts"] or 0) + 1
    write_text(path, json.dumps({"step": step, "attempts": attempts}))
    if ended["code"] != EXIT_REQUEUE and attempts > max_attempts:
        return f"failed: {attempts} starts without a new checkpoint: {ended['cause']}"
    return f"again: {ended['cause']}"


if __name__ == "__main__":
    print(verdict(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])))
