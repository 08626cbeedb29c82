"""The checkpoints of a tuning run, kept next to its output folder until the output is complete."""

from __future__ import annotations

from pathlib import Path

PRECISION = "precision"
"""Name of the file in a checkpoint that holds its precision: bf16 or fp32."""


def last_checkpoint(folder: Path) -> Path | None:
    """Returns the newest complete checkpoint in `folder`, or None."""
    complete = []
    for path in folder.glob("checkpoint-*"):
        marks = sorted(mark.name for mark in path.glob("saved-*"))
        if marks and len(marks) == int(marks[0].rsplit("-", 1)[1]):
            complete.append((int(path.name.removeprefix("checkpoint-")), path))
    return max(complete)[1] if complete else None


def recorded_precision(checkpoint: Path) -> str | None:
    """Returns the precision recorded in a checkpoint, or None if it has no record."""
    path = checkpoint / PRECISION
    return path.read_text() if path.is_file() else None
