"""The part of the report that tells how a model was tuned."""

from __future__ import annotations

import json
from pathlib import Path

from conf.errors import InputError
from eval.page_run import Table, duration
from eval.run_folder import Record, read_metrics


def read_sft(folder: Path) -> Record:
    """sft.json of a tuned folder, with its metrics."""
    for name in ("sft.json", "metrics.jsonl"):
        if not (folder / name).is_file():
            raise InputError(f"sft={folder} has no {name}: expected what python -m finetune made.")
    return json.loads((folder / "sft.json").read_text()) | {"metrics": read_metrics(folder)}


def sft_facts(tuned: Record) -> Table:
    """What was tuned on what."""
    return [
        ("conversations", f"{tuned['rows']:,}"),
        ("data", f"{Path(tuned['data']).name}, sha256 {tuned['data_sha256'][:16]}"),
        ("loss on", "the assistant's turns only"),
        ("chat template", tuned["chat_template"]),
        ("steps", f"{tuned['steps']:,}"),
        ("tokens", f"{tuned['tokens']:,}"),
        ("loss", f"{tuned['first_loss']:.3f} to {tuned['loss']:.3f} nats per answer token"),
        ("precision", tuned["precision"]),
        ("time", duration(tuned["seconds"])),
    ]
