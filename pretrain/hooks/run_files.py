"""Writes `metrics.jsonl` and `ledger.jsonl` of a run folder, on rank 0 only."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pretrain.hooks import Hook, Order, TrainerView
from pretrain.records import RecordLog, drop_steps_after, mark_discarded

LEDGER_KEYS = ("step", "stage", "first_sample", "samples", "fim", "digest", "skipped")


class RunFiles(Hook):
    """Appends every record to `metrics.jsonl`, and the train records to `ledger.jsonl`.

    A resumed run first drops the records that the interrupted process wrote after the checkpoint,
    because those steps are trained again.
    """

    order = Order.RECORD

    def __init__(self, run_dir: Path) -> None:
        self.metrics = RecordLog(run_dir / "metrics.jsonl")
        self.ledger = RecordLog(run_dir / "ledger.jsonl")
        self.rewinds: list[Mapping[str, Any]] = []

    def on_start(self, trainer: TrainerView) -> None:
        """Drops the records of steps that will be trained again."""
        for log in (self.metrics, self.ledger):
            drop_steps_after(log.path, trainer.step)

    def on_record(self, record: Mapping[str, Any]) -> None:
        """Writes the record at once, so that a crash loses no records."""
        line = {
            key: value for key, value in record.items() if key not in ("first_sample", "digest")
        }
        self.metrics.append(line)
        if record["kind"] != "train":  # rare, unlike train records
            self.metrics.close()
            self.ledger.close()
        if record["kind"] == "train":
            self.ledger.append({key: record[key] for key in LEDGER_KEYS if key in record})
        elif record.get("event") == "rewind":
            self.rewinds.append(record)
        while self.rewinds and not self.ledger.waiting:
            rewind = self.rewinds[0]
            try:
                mark_discarded(self.ledger.path, rewind["to_step"], rewind["step"])
            except OSError:  # the disk is full: retried with the next record
                return
            self.rewinds.pop(0)

    def on_leave(self, trainer: TrainerView) -> None:
        """Closes both files."""
        self.metrics.close()
        self.ledger.close()
