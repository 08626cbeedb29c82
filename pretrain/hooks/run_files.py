"""`metrics.jsonl` and `ledger.jsonl` of a run folder; rank 0 only."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pretrain.hooks import Hook

if TYPE_CHECKING:
    from pretrain.trainer import Trainer

LEDGER_KEYS = ("step", "stage", "first_sample", "samples", "digest", "skipped")


class RunFiles(Hook):
    """Appends every record; what an interrupted process wrote beyond the checkpoint that it is
    resumed from is cut off, since those steps are done again."""

    def __init__(self, run_dir: Path) -> None:
        self.metrics = Lines(run_dir / "metrics.jsonl")
        self.ledger = Lines(run_dir / "ledger.jsonl")

    def on_start(self, trainer: Trainer) -> None:
        """Cuts both files to the steps that are done."""
        for lines in (self.metrics, self.ledger):
            keep_steps(lines.path, trainer.step)

    def on_record(self, record: Mapping[str, Any]) -> None:
        """Writes a line at once: a crash loses none."""
        line = {
            key: value for key, value in record.items() if key not in ("first_sample", "digest")
        }
        self.metrics.append(line)
        if record["kind"] == "train":
            self.ledger.append({key: record[key] for key in LEDGER_KEYS if key in record})
        elif record.get("event") == "rewind":
            mark_skipped(self.ledger.path, record["to_step"], f"rewound at step {record['step']}")


class Lines:
    """A file that lines are added to. Where there is no room they wait in memory and are tried
    again with the next: a full disk costs no step of the training."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.waiting: list[str] = []

    def append(self, record: Mapping[str, Any]) -> None:
        """Writes a line at once, and those that wait before it."""
        self.waiting.append(json.dumps(record) + "\n")
        whole = None
        try:
            with open(self.path, "ab", buffering=0) as file:
                whole = file.tell()
                content = "".join(self.waiting).encode()
                if (written := file.write(content)) < len(content):
                    raise OSError(f"{written} of {len(content)} bytes were written")
        except OSError as error:
            if whole is not None and self.path.is_file():
                os.truncate(self.path, whole)  # a line is there or it is not
            if len(self.waiting) == 1:
                why = error.strerror or error
                print(
                    f"ALARM: {self.path} cannot be written ({why}): the training goes on, the "
                    "lines wait in memory and are tried again at every step.",
                    file=sys.stderr,
                    flush=True,
                )
            return
        self.waiting.clear()


def keep_steps(path: Path, last: int) -> None:
    """Drops the lines of steps after `last`, and a last line that a crash cut in two."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if record["step"] <= last:
            kept.append(line + "\n")
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(kept))
    temporary.replace(path)


def mark_skipped(path: Path, after: int, why: str) -> None:
    """Says of the steps after `after` that their tokens are in no weight."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines = [line | ({"skipped": why} if line["step"] > after else {}) for line in lines]
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(json.dumps(line) + "\n" for line in lines))
    temporary.replace(path)
