"""Finds the runs that the report of a run is compared with: its parents and branches (I17)."""

from __future__ import annotations

import json
from pathlib import Path

from eval.report.run_folder import RunFolder

BRANCHES = "branches"
"""Subfolder of a run folder with one note per branch of the run."""
AT_MOST = 7
"""Number of runs to compare with; more lines in a chart cannot be distinguished."""


def relatives(run: RunFolder) -> dict[str, str]:
    """Returns the run folders of parents, of branches, and of other branches of the parent.

    They are keyed by names for the page. Runs that cannot be read, or have no step, are left out.
    """
    parents = [Path(parent["run"]) for parent in run.env.get("parents", [])]
    found = [*parents, *branches_of(run.path), *(branches_of(parents[0]) if parents else [])]
    others = {path.resolve(): path for path in found if has_steps(path)}
    others.pop(run.path.resolve(), None)
    named: dict[str, str] = {}
    for path in list(others.values())[:AT_MOST]:
        name = path.name if path.name not in named else str(path)
        named[name] = str(path)
    return named


def branches_of(run_dir: Path) -> list[Path]:
    """Returns the run folders of the branches of a run, by the step at which they start."""
    notes = []
    for path in (run_dir / BRANCHES).glob("*.json"):
        try:
            note = json.loads(path.read_text())
            notes.append((int(note["step"]), str(note["run_dir"])))
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return [Path(folder) for _, folder in sorted(notes)]


def has_steps(run_dir: Path) -> bool:
    """Returns True if a folder is that of a run with at least one training step."""
    if not all((run_dir / name).is_file() for name in ("config.yaml", "env.json", "metrics.jsonl")):
        return False
    with (run_dir / "metrics.jsonl").open() as lines:
        return any(line.startswith('{"kind": "train"') and line.endswith("\n") for line in lines)
