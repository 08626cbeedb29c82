"""Collects the content of the report: numbers, tables, charts and sentences."""

from __future__ import annotations

import json
import statistics
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from conf.chat import text_of
from conf.errors import InputError
from conf.parents import name_of
from conf.text import format_duration
from data_pipeline.store.corpus import open_corpus
from data_pipeline.store.manifest import Manifest
from eval.files import read_json_lines
from eval.report.comparison import compare_runs
from eval.report.config import ReportConfig
from eval.report.curves import score_charts, training_charts
from eval.report.family import relatives
from eval.report.forecast import forecast_check
from eval.report.page_needle import heat_maps, training_maps
from eval.report.page_run import (
    cost,
    data_table,
    incidents,
    lineage,
    pace,
    shards,
    stages,
)
from eval.report.page_scores import evaluation, suites
from eval.report.page_tuning import read_tuned, sentence, tuning
from eval.report.run_folder import Record, RunFolder, read_run
from eval.scores.results import load_results, rows
from model.flops import parameters
from pages.drawing import source_styles
from pages.svg import short_number

AGREEMENT = 0.005
"""Relative difference up to which two losses agree, given bf16 and different kernels."""


def page_content(config: ReportConfig) -> dict[str, Any]:
    """Returns the variables of the page's template.

    Raises:
        InputError: a given file or folder is missing or of the wrong kind.
    """
    run = read_run(Path(config.run))
    corpus = open_corpus(config.corpus or run.env["data"])
    manifest = corpus.of_run(run.env) or corpus
    results = load_results(Path(config.results)) if config.results else None
    tuned = [read_tuned(name, Path(folder)) for name, folder in config.tuned.items()]
    styles = source_styles(manifest.source_tokens("train"))
    others = relatives(run) | config.others
    return {
        "name": run.config["name"],
        "network": run.model,
        "state": "finished" if run.is_finished else f"in progress, step {run.train[-1]['step']}",
        "is_finished": run.is_finished,
        "made": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        "summary": summary(run, manifest),
        "tuned": " ".join(sentence(stage) for stage in tuned),
        "cards": cards(run, results),
        "charts": [*training_charts(run, styles), *score_charts(run)],
        "forecast": forecast_check(run),
        "stages": stages(run, styles),
        "pace": pace(run),
        "incidents": incidents(run),
        "cost": cost(run),
        "comparison": compare_runs(run, others) if others else None,
        "data": data_table(run, manifest),
        "evaluation": evaluation(results) if results else None,
        "suites": suites(results) if results else [],
        "training_maps": training_maps(run),
        "heat_maps": heat_maps(results) if results else [],
        "agreement": agreement(run, config.perplexity) if config.perplexity else None,
        "samples": samples(config),
        "tuning": tuning(tuned),
        "lineage": lineage(run, manifest, results, tuned),
        "shards": shards(manifest),
        "config": (run.path / "config.yaml").read_text(),
    }


def summary(run: RunFolder, manifest: Manifest) -> str:
    """Returns a sentence that describes the run."""
    model, last = run.model, run.train[-1]
    window = f", sliding window {model.describe_windows()}" if model.sliding_window else ""
    differ = len({layer.rope for layer in model.layers}) > 1
    positions = f", {model.describe_positions()}" if differ else ""
    teacher = run.env.get("teacher")
    taught = f", taught by {Path(teacher['path']).name}" if teacher else ""
    done = f"{taught} on {last['tokens']:,} tokens of {manifest.name} in {last['step']:,} steps"
    start = f"continued from {run.origin}" if run.origin else "trained from scratch"
    for parent in run.env.get("parents", [])[:1]:
        start = f"trained as a {parent['kind']} of {name_of(parent)} from step {parent['step']:,}"
    return (
        f"A decoder of {short_number(parameters(model))} parameters ({model.architecture}, "
        f"{model.num_layers} layers of {model.hidden_size}{window}{positions}), {start}"
        f"{done}."
    )


def cards(run: RunFolder, results: Record | None) -> list[dict[str, str]]:
    """Returns the key figures, each with a label, a value and a note."""
    figures = []
    if run.validation:
        first, last = run.validation[0], run.validation[-1]
        average = f"; average of the weights {last['ema']['loss']:.3f}" if "ema" in last else ""
        figures.append(
            {
                "label": "validation loss",
                "value": f"{last['loss']:.3f}",
                "note": f"nats per token, from {first['loss']:.3f}{average}",
            }
        )
        bits = ", ".join(
            f"{source} {score['bits_per_byte']:.2f}" for source, score in last["sources"].items()
        )
        mean = statistics.fmean(s["bits_per_byte"] for s in last["sources"].values())
        figures.append(
            {"label": "bits per byte", "value": f"{mean:.2f}", "note": f"mean of {bits}"}
        )
    shown = set()
    for task, _, scores in rows(results) if results else ():
        best = max(scores, key=lambda name: scores[name]["value"])
        guess = scores[best]["chance"]
        if guess is not None and task not in shown and len(figures) < 4:
            shown.add(task)
            figures.append(
                {
                    "label": task.replace("_", " "),
                    "value": f"{scores[best]['value']:.1%}",
                    "note": f"± {100 * (scores[best]['stderr'] or 0):.1f}, {best}; "
                    f"random guessing: {guess:.0%}",
                }
            )
    rate = statistics.median(record["tokens_per_second"] for record in run.train)
    mfu = statistics.median(record["mfu"] for record in run.train)
    figures.append(
        {
            "label": "throughput",
            "value": f"{short_number(rate)}",
            "note": f"tokens/s, median; MFU {mfu:.0%}",
        }
    )
    seconds = sum(record["step_seconds"] for record in run.train)
    processes = run.env["world_size"]
    figures.append(
        {
            "label": "time in steps",
            "value": format_duration(seconds),
            "note": f"{processes:,} process{'es' * (processes > 1)} on {run.env['device']}",
        }
    )
    return figures


def agreement(run: RunFolder, file: str) -> dict[str, Any]:
    """Compares the exported model's loss in transformers with the trainer's loss."""
    path = Path(file)
    if not path.is_file():
        raise InputError(
            f"perplexity={path}: the file does not exist. Write it with python -m eval perplexity."
        )
    exported = json.loads(path.read_text())
    if "sources" not in exported or not run.validation:
        raise InputError(
            f"perplexity={path}: either this file or run={run.path} has no held-out loss to "
            "compare. Remove perplexity."
        )
    last, exported_loss = run.validation[-1], exported["loss"]
    text = f"The exported folder in stock transformers has a held-out loss of {exported_loss:.4f}"
    if targets(exported) != targets(last):
        text += f", but on different samples than the trainer's loss of {last['loss']:.4f}."
        return {"text": text, "agrees": False}
    difference = abs(exported_loss / last["loss"] - 1)
    text += (
        f"; the trainer's last validation gave {last['loss']:.4f} on the same samples, "
        f"a difference of {difference:.2%}."
    )
    return {"text": text, "agrees": difference <= AGREEMENT}


def targets(scores: Record) -> dict[str, int]:
    """Returns the number of target tokens per source."""
    return {source: score["tokens"] for source, score in scores["sources"].items()}


def samples(config: ReportConfig) -> list[dict[str, Any]]:
    """Returns prompts with the completion of each model, matched by line number.

    If `samples` is empty, the files in the run folder are used, oldest first.
    """
    stored = sorted(Path(config.run).glob("samples/*.jsonl"), key=lambda path: path.stat().st_mtime)
    paths = config.samples or {path.stem: str(path) for path in stored}
    files = {name: read_json_lines(Path(path), f"samples.{name}") for name, path in paths.items()}
    for name, path in paths.items():
        try:
            for row in files[name]:
                for text in (row.get("prompt"), row.get("generated"), row.get("reference") or ""):
                    text_of(text)
        except ValueError as error:
            raise InputError(
                f"samples.{name}={path}: a row lacks 'prompt' or 'generated' as text ({error}). "
                "Give a file written by python -m eval generate."
            ) from None
    shown = []
    for number in range(min(config.max_samples, max(map(len, files.values()), default=0))):
        completions = {name: rows[number] for name, rows in files.items() if number < len(rows)}
        first = next(iter(completions.values()))
        shown.append(
            {
                "prompt": first["prompt"],
                "reference": first.get("reference"),
                "answers": [(name, row["generated"].strip()) for name, row in completions.items()],
            }
        )
    return shown
