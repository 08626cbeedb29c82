"""The part of the report about tuning, with one section per stage."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from conf.errors import InputError
from conf.text import format_duration
from eval.report.curves import tuning_charts
from eval.report.page_run import Table
from eval.report.run_folder import Record, read_metrics
from pages.svg import short_number

METHODS = {
    "sft.json": ("SFT", "conversations", "nats per answer token", "the assistant's turns only"),
    "dpo.json": ("DPO", "pairs", "nats per pair", "chosen against rejected answers"),
}
"""Method, noun for a row, unit of the loss and what the loss covers, keyed by the file name of
finetune's record."""


def record_name(folder: Path) -> str | None:
    """Returns the name of finetune's record in a folder, or None if there is none."""
    return next((name for name in METHODS if (folder / name).is_file()), None)


def read_tuned(name: str, folder: Path) -> Record:
    """Returns the record of a tuned folder, with its metrics and its name on the page.

    Raises:
        InputError: finetune did not make the folder.
    """
    file = record_name(folder)
    if file is None or not (folder / "metrics.jsonl").is_file():
        raise InputError(
            f"tuned.{name}={folder}: expected a folder with metrics.jsonl and one of "
            f"{', '.join(METHODS)}. Give a folder made by python -m finetune."
        )
    record = json.loads((folder / file).read_text())
    return record | {
        "name": name,
        "folder": folder,
        "method": file,
        "metrics": read_metrics(folder),
    }


def tuning(stages: list[Record]) -> list[dict[str, Any]]:
    """Returns one section per tuned folder, in the given order."""
    return [
        {
            "title": f"{stage['name']}: {METHODS[stage['method']][0]}",
            "folder": stage["folder"],
            "model": stage["model"],
            "sentence": sentence(stage),
            "facts": facts(stage),
            "charts": tuning_charts(stage["metrics"], METHODS[stage["method"]][2]),
        }
        for stage in stages
    ]


def sentence(stage: Record) -> str:
    """Returns a sentence that names the method and the number of rows."""
    method, rows, _, _ = METHODS[stage["method"]]
    return f"Tuned by {method} on {stage['rows']:,} {rows}."


def facts(stage: Record) -> Table:
    """Returns the settings and results of a tuning stage."""
    method, rows, unit, subject = METHODS[stage["method"]]
    table = [
        (
            "method",
            "direct preference optimization" if method == "DPO" else "supervised fine-tuning",
        ),
        ("tuned from", Path(stage["model"]).name),
        (rows, f"{stage['rows']:,}"),
        ("data", f"{Path(stage['data']).name}, sha256 {stage['data_sha256'][:16]}"),
        ("loss on", subject),
        ("chat template", stage["chat_template"]),
        ("steps", f"{stage['steps']:,}"),
        ("tokens", f"{stage['tokens']:,}"),
    ]
    if "beta" in stage:
        table.append(("beta", f"{stage['beta']:g}"))
        adapters = f"LoRA, rank {stage['lora_rank']}, alpha {stage['lora_alpha']}, merged"
        table.append(("adapters", adapters))
    if "learning_rate" in stage:
        table.append(
            ("learning rate", f"{short_number(stage['learning_rate'])}, {stage['schedule']}")
        )
    table.append(("loss", f"{stage['first_loss']:.3f} to {stage['loss']:.3f} {unit}"))
    for kind, label in (("train", ""), ("validation", "validation ")):
        table += changes(stage["metrics"], kind, label, unit)
    return [*table, ("precision", stage["precision"]), ("time", format_duration(stage["seconds"]))]


def changes(metrics: list[Record], kind: str, label: str, unit: str) -> Table:
    """Returns the first and last value of each metric in the records of one kind.

    The training loss is omitted because finetune's record already contains it.

    kind: `train` or `validation`.
    """
    lines = [line for line in metrics if line["kind"] == kind]
    shown = (
        ("loss", "loss", f"{{:.3f}} to {{:.3f}} {unit}"),
        ("reward_accuracy", "reward accuracy", "{:.0%} to {:.0%}"),
        ("reward_margin", "reward margin", "{:.3f} to {:.3f}"),
    )
    table = []
    for key, name, text in shown:
        values = [line[key] for line in lines if key in line]
        if values and not (kind == "train" and key == "loss"):
            table.append((label + name, text.format(values[0], values[-1])))
    return table
