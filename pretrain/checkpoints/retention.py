"""Which checkpoints stay."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

from pretrain.checkpoints import files


@dataclass(frozen=True)
class Retention:
    """last: the newest ones; every: those of multiples of so many steps, for ever; best: those with
    the lowest held-out loss. A short-lived one stays until a newer one is there."""

    last: int = 2
    every: int = 0
    best: int = 0

    def choose(self, folder: Path) -> list[Path]:
        """Those of a folder that can go. The newest never does."""
        known = {}
        for path in files.listed(folder):
            try:
                known[path] = files.read_manifest(path)
            except (OSError, ValueError):
                continue  # a bad one is for the next start to find, and to keep for a person
        return self.gone(known)

    def gone(self, known: dict[Any, dict[str, Any]]) -> list[Any]:
        """Of checkpoints by their manifests, the newest first, those that can go."""
        lasting = [path for path in known if not known[path].get("short_lived")]
        losses = [(known[path].get("validation_loss"), path) for path in lasting]
        scored = [(loss, path) for loss, path in losses if loss is not None and isfinite(loss)]
        best = [path for _, path in sorted(scored, key=lambda pair: pair[0])[: self.best]]
        kept = {*list(known)[:1], *lasting[: self.last], *best}
        if self.every:
            kept |= {path for path in lasting if known[path]["step"] % self.every == 0}
        return [path for path in known if path not in kept]
