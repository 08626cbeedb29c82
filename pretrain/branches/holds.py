"""Keeps the checkpoint that a branch starts from for as long as the branch needs it.

A branch writes a note into the folder `branches/` of its trunk's run folder: its own run folder and
the step that it starts from. The trunk deletes no checkpoint that a note names while the branch's
run folder exists and has no complete checkpoint of its own. A branch that was removed therefore
holds nothing, and a note can be deleted at any time.
"""

from __future__ import annotations

import hashlib
import json
import time
from pathlib import Path

from conf.files import write_text
from data_pipeline.store.storage import is_remote
from pretrain.checkpoints import files

FOLDER = "branches"
"""Subfolder of a run folder with one note per branch."""


def hold(run: str, step: int, run_dir: Path) -> str | None:
    """Writes the note of a branch, and returns a warning if that is not possible.

    Args:
        run: The trunk's run folder, or the URL of its mirror, in which no notes are kept.
        step: The step that the branch starts from.
        run_dir: The run folder of the branch.
    """
    if is_remote(run) or not Path(run).is_dir():
        return None
    branch = str(run_dir.absolute())
    name = f"{run_dir.name}-{hashlib.sha256(branch.encode()).hexdigest()[:8]}.json"
    note = {"run_dir": branch, "step": step, "time": time.time()}
    try:
        write_text(Path(run) / FOLDER / name, json.dumps(note, indent=1))
    except OSError as error:
        return (
            f"warning: {run} cannot be written to ({error.strerror or error}), so a run in it may "
            f"delete its checkpoint of step {step} before this branch has one of its own."
        )
    return None


def branches_of(run_dir: Path) -> list[tuple[Path, int]]:
    """Returns the run folders and steps of the branches of a run that still exist, by step."""
    found = []
    for path in (run_dir / FOLDER).glob("*.json"):
        try:
            note = json.loads(path.read_text())
            branch, step = Path(note["run_dir"]), int(note["step"])
        except (OSError, ValueError, KeyError, TypeError):
            continue
        if branch.is_dir():
            found.append((branch, step))
    return sorted(found, key=lambda one: (one[1], one[0]))


def held_steps(run_dir: Path) -> set[int]:
    """Returns the steps of a run whose checkpoints its branches still need."""
    return {step for branch, step in branches_of(run_dir) if not has_checkpoint(branch)}


def has_checkpoint(run_dir: Path) -> bool:
    """Returns True if a run has a complete checkpoint. The bytes of its files are not read."""
    saved = files.checkpoints_in(run_dir / "checkpoints")
    return any(files.verdict(path) is None for path in saved)
