"""Checkpoints of a tuning run, beside its result until that is whole."""

from __future__ import annotations

from pathlib import Path

PRECISION = "precision"
"""A file of a checkpoint that holds what it was made with: bf16 or fp32."""


def last_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint in `folder` that is whole."""
    whole = []
    for path in folder.glob("checkpoint-*"):
        marks = sorted(mark.name for mark in path.glob("saved-*"))
        if marks and len(marks) == int(marks[0].rsplit("-", 1)[1]):
            whole.append((int(path.name.removeprefix("checkpoint-")), path))
    return max(whole)[1] if whole else None


def precision_before(checkpoint: Path) -> str | None:
    """Returns the precision that a checkpoint was made with; None for one that does not say."""
    path = checkpoint / PRECISION
    return path.read_text() if path.is_file() else None
