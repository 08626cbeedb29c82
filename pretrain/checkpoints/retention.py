"""Chooses which checkpoints to keep and which to delete."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

from pretrain.branches.holds import held_steps
from pretrain.checkpoints import files


@dataclass(frozen=True)
class Retention:
    """Rules for the checkpoints to keep. A short-lived one is kept until a newer one exists.

    last: number of newest checkpoints to keep.
    every: checkpoints of steps that are multiples of this are kept permanently; 0 for none.
    best: number of checkpoints with the lowest held-out loss to keep.
    steps: steps whose checkpoints are kept permanently.
    """

    last: int = 2
    every: int = 0
    best: int = 0
    steps: Collection[int] = ()

    def choose(self, folder: Path) -> list[Path]:
        """Returns the checkpoints of a folder that can be deleted.

        The newest is never among them, nor are those that branches need.
        """
        known = {}
        for path in files.checkpoints_in(folder):
            try:
                known[path] = files.read_manifest(path)
            except (OSError, ValueError):
                continue  # the next start finds a damaged one and keeps it for inspection
        return self.expired(known, held_steps(folder.parent))

    def expired(
        self, known: dict[Any, dict[str, Any]], held: Collection[int] = frozenset()
    ) -> list[Any]:
        """Returns the checkpoints that can be deleted.

        Args:
            known: Their manifests, newest first.
            held: Steps whose checkpoints are kept.
        """
        lasting = [path for path in known if not known[path].get("short_lived")]
        losses = [(known[path].get("validation_loss"), path) for path in lasting]
        scored = [(loss, path) for loss, path in losses if loss is not None and isfinite(loss)]
        best = [path for _, path in sorted(scored, key=lambda pair: pair[0])[: self.best]]
        kept = {*list(known)[:1], *lasting[: self.last], *best}
        if self.every:
            kept |= {path for path in lasting if known[path]["step"] % self.every == 0}
        kept |= {path for path in known if known[path]["step"] in {*held, *self.steps}}
        return [path for path in known if path not in kept]
