"""What the report says: numbers, tables and drawings, read from files and put into words."""

from __future__ import annotations

import json
import statistics
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from conf.errors import InputError
from data_pipeline.manifest import Manifest, load_manifest
from eval.curves import sft_charts, training_charts
from eval.files import read_json_lines
from eval.report import ReportConfig
from eval.results import LOWER_IS_BETTER, SHARES, format_score, load_results, rows
from eval.run_folder import Record, RunFolder, read_metrics, read_run
from model.flops import FLOP_CONVENTION, parameters
from pages.drawing import source_styles
from pages.svg import short_number

Table = list[tuple[str, str]]
AGREEMENT = 0.005
"""Relative difference up to which two losses count as the same: bf16 and other kernels."""
METRIC_NOTES = {
    "acc": "acc takes the likeliest choice.",
    "acc_mutual_info": "acc mutual info takes the choice that the context makes likelier by most.",
}


def content(config: ReportConfig) -> dict[str, Any]:
    """All that the template shows.

    Raises:
        InputError: a file or folder that is named is missing or not of its kind.
    """
    run = read_run(Path(config.run))
    manifest = load_manifest(config.corpus or run.env["data"])
    results = load_results(Path(config.results)) if config.results else None
    tuned = read_sft(Path(config.sft)) if config.sft else None
    styles = source_styles(manifest.source_tokens("train"))
    return {
        "name": run.config["name"],
        "state": "finished" if run.is_finished else f"in progress, step {run.train[-1]['step']}",
        "is_finished": run.is_finished,
        "made": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        "summary": summary(run, manifest, tuned),
        "cards": cards(run, results),
        "charts": training_charts(run, styles),
        "stages": stages(run, styles),
        "pace": pace(run),
        "data": data_table(run, manifest),
        "evaluation": evaluation(results) if results else None,
        "agreement": agreement(run, config.perplexity) if config.perplexity else None,
        "samples": samples(config),
        "sft": tuned and {"facts": sft_facts(tuned), "charts": sft_charts(tuned["metrics"])},
        "lineage": lineage(run, manifest, results, tuned),
        "config": (run.path / "config.yaml").read_text(),
    }


def summary(run: RunFolder, manifest: Manifest, tuned: Record | None) -> str:
    """The run in two or three sentences."""
    model, last = run.model, run.train[-1]
    window = f", sliding window {model.sliding_window}" if model.sliding_window else ""
    text = (
        f"A decoder of {short_number(parameters(model))} parameters ({model.architecture}, "
        f"{model.num_layers} layers of {model.hidden_size}{window}), trained from scratch on "
        f"{last['tokens']:,} tokens of {manifest.name} in {last['step']:,} steps."
    )
    if tuned:
        text += f" Then tuned on {tuned['rows']:,} conversations."
    return text


def cards(run: RunFolder, results: Record | None) -> list[dict[str, str]]:
    """The key figures: label, value, note."""
    found = []
    if run.validation:
        first, last = run.validation[0], run.validation[-1]
        found.append(
            {
                "label": "validation loss",
                "value": f"{last['loss']:.3f}",
                "note": f"nats per token, from {first['loss']:.3f}",
            }
        )
        bits = ", ".join(
            f"{source} {score['bits_per_byte']:.2f}" for source, score in last["sources"].items()
        )
        mean = statistics.fmean(s["bits_per_byte"] for s in last["sources"].values())
        found.append({"label": "bits per byte", "value": f"{mean:.2f}", "note": f"mean of {bits}"})
    shown = set()
    for task, _, scores in rows(results) if results else ():
        best = max(scores, key=lambda name: scores[name]["value"])
        guess = scores[best]["chance"]
        if guess is not None and task not in shown and len(found) < 4:
            shown.add(task)
            found.append(
                {
                    "label": task.replace("_", " "),
                    "value": f"{scores[best]['value']:.1%}",
                    "note": f"± {100 * (scores[best]['stderr'] or 0):.1f}, {best}; "
                    f"guessing gives {guess:.0%}",
                }
            )
    rate = statistics.median(record["tokens_per_second"] for record in run.train)
    utilisation = statistics.median(record["mfu"] for record in run.train)
    found.append(
        {
            "label": "throughput",
            "value": f"{short_number(rate)}",
            "note": f"tokens/s, median; MFU {utilisation:.0%}",
        }
    )
    seconds = sum(record["step_seconds"] for record in run.train)
    found.append(
        {
            "label": "time in steps",
            "value": duration(seconds),
            "note": f"{run.env['world_size']} processes on {run.env['device']}",
        }
    )
    return found


def stages(run: RunFolder, styles: dict[str, str]) -> list[dict[str, Any]]:
    """A row a stage of the recipe: what was planned, what was done."""
    table = []
    for name, stage in run.config["recipe"]["stages"].items():
        done = [record for record in run.train if record["stage"] == name]
        weights = stage["mixture"] or {}
        total = sum(weights.values())
        rates = [record["tokens_per_second"] for record in done]
        table.append(
            {
                "name": name,
                "seq_len": f"{stage['seq_len']:,}",
                "tokens": f"{stage['tokens']:,}",
                "steps": f"{len(done):,}",
                "mixture": ", ".join(f"{s} {w / total:.0%}" for s, w in weights.items())
                or "by size",
                "shares": [
                    (f"{100 * weights[source] / total:.2f}", style)
                    for source, style in styles.items()
                    if source in weights
                ],
                "rate": short_number(statistics.median(rates)) if rates else "",
                "loss": f"{done[-1]['loss']:.3f}" if done else "",
            }
        )
    return table


def pace(run: RunFolder) -> list[str]:
    """What to know about the time of steps and MFU."""
    seconds = sum(record["step_seconds"] for record in run.train)
    waited = sum(record["data_wait_seconds"] for record in run.train)
    said = [
        f"Steps waited for data {waited / seconds:.1%} of their time.",
        f"FLOPs per token behind MFU: {FLOP_CONVENTION}.",
    ]
    above = sum(record["mfu"] > 1 for record in run.train)
    if above:
        said.append(
            f"MFU is above 100% in {above:,} of {len(run.train):,} steps: the peak behind it was "
            "measured too low, as happens where other work shares the machine."
        )
    return said


def data_table(run: RunFolder, manifest: Manifest) -> list[dict[str, str]]:
    """A row a source: what it holds, what was left out, what of it the model saw."""
    consumed = run.train[-1].get("consumed_tokens", {})
    held_out = manifest.source_tokens("held_out")
    table = []
    for source, tokens in manifest.source_tokens("train").items():
        about = manifest.sources.get(source, {})
        kept = sum(entry["documents"] for entry in manifest.shards("train", source))
        left_out = {
            reason.replace("_", " "): count
            for reason, count in about.items()
            if reason not in ("files", "documents", "bytes") and count
        }
        seen = consumed.get(source, 0)
        size = sum(entry["bytes"] for entry in manifest.shards("train", source))
        table.append(
            {
                "source": source,
                "documents": f"{kept:,}",
                "bytes": f"{size / 1e6:,.1f} MB",
                "tokens": f"{tokens:,}",
                "held_out": f"{held_out.get(source, 0):,}",
                "seen": f"{seen:,}",
                "epochs": f"{seen / tokens:.2f}" if tokens else "",
                "left_out": ", ".join(f"{count:,} {reason}" for reason, count in left_out.items())
                or "none",
            }
        )
    return table


def evaluation(results: Record) -> dict[str, Any]:
    """The models side by side; a cell has its text and, for shares, how long its bar is."""
    table, before = [], ""
    for task, metric, scores in rows(results):
        share = metric.split(",")[0] in SHARES
        pick = min if metric in LOWER_IS_BETTER else max
        best = pick(score["value"] for score in scores.values())
        guess = next(iter(scores.values()))["chance"]
        texts = {name: format_score(score, metric) for name, score in scores.items()}
        cells = [
            {
                "value": texts[name][0],
                "stderr": texts[name][1],
                "share": f"{100 * scores[name]['value']:.1f}" if share else None,
                "best": len(scores) > 1 and scores[name]["value"] == best,
            }
            if name in scores
            else None
            for name in results["models"]
        ]
        entry = next(m["tasks"][task] for m in results["models"].values() if task in m["tasks"])
        table.append(
            {
                "task": task if task != before else "",
                "about": f"{entry['samples']:,} samples, {entry['num_fewshot'] or 0} shots",
                "metric": metric.replace("_", " "),
                "lower": metric in LOWER_IS_BETTER,
                "cells": cells,
                "chance": f"{guess:.0%}" if guess is not None else "",
                "chance_share": f"{100 * guess:.1f}" if guess is not None and share else None,
            }
        )
        before = task
    limits = {model["settings"]["limit"] for model in results["models"].values()} - {None}
    return {
        "models": list(results["models"]),
        "rows": table,
        "notes": [
            note
            for metric, note in METRIC_NOTES.items()
            if any(m == metric for _, m, _ in rows(results))
        ],
        "limited": f"Only the first {min(limits)} samples of each task were run." if limits else "",
        "packages": ", ".join(f"{k} {v}" for k, v in results["packages"].items()),
    }


def agreement(run: RunFolder, file: str) -> dict[str, Any]:
    """How the exported model's loss in transformers compares to the trainer's."""
    path = Path(file)
    if not path.is_file():
        raise InputError(
            f"perplexity={path} does not exist: make it with python -m eval perplexity."
        )
    found = json.loads(path.read_text())
    if "sources" not in found or not run.validation:
        raise InputError(f"perplexity={path} holds no loss to compare with that of run={run.path}.")
    last, theirs = run.validation[-1], found["loss"]
    text = f"The exported folder in stock transformers has a held-out loss of {theirs:.4f}"
    if targets(found) != targets(last):
        text += f", on other samples than the trainer's {last['loss']:.4f}."
        return {"text": text, "agrees": False}
    difference = abs(theirs / last["loss"] - 1)
    text += (
        f"; the trainer's last validation gave {last['loss']:.4f} on the same samples, "
        f"a difference of {difference:.2%}."
    )
    return {"text": text, "agrees": difference <= AGREEMENT}


def targets(scores: Record) -> dict[str, int]:
    """How many tokens of each source a loss was taken on."""
    return {source: score["tokens"] for source, score in scores["sources"].items()}


def samples(config: ReportConfig) -> list[dict[str, Any]]:
    """Prompts with what each model wrote, matched by their number in the files."""
    files = {
        name: read_json_lines(Path(path), f"samples.{name}")
        for name, path in config.samples.items()
    }
    for name, path in config.samples.items():
        if any("generated" not in row or "prompt" not in row for row in files[name]):
            raise InputError(
                f"samples.{name}={path} has rows without 'prompt' and 'generated': expected a "
                "file of python -m eval generate."
            )
    shown = []
    for number in range(min(config.max_samples, max(map(len, files.values()), default=0))):
        found = {name: rows[number] for name, rows in files.items() if number < len(rows)}
        first = next(iter(found.values()))
        shown.append(
            {
                "prompt": first["prompt"],
                "reference": first.get("reference"),
                "answers": [(name, row["generated"].strip()) for name, row in found.items()],
            }
        )
    return shown


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


def lineage(
    run: RunFolder, manifest: Manifest, results: Record | None, tuned: Record | None
) -> Table:
    """Where everything is from: enough to make it again."""
    env = run.env
    restarts = run.events("resume")
    table = [
        ("code", f"commit {env['git_commit']}{', with local changes' if env['git_dirty'] else ''}"),
        ("data", f"{manifest.name}, fingerprint {env['data_fingerprint']}"),
        ("tokenizer", f"{manifest.vocab_size:,} ids, sha256 {env['tokenizer_fingerprint']}"),
        ("order of samples", f"seed {run.config['seed']}, fingerprint {env['order_fingerprint']}"),
        ("hardware", f"{env['world_size']} x {env['device']}, {env['threads']} threads each"),
        ("platform", f"{env['platform']}, Python {env['python']}"),
        ("packages", ", ".join(f"{name} {version}" for name, version in env["packages"].items())),
        ("checkpoints", ", ".join(run.checkpoints) or "none"),
        (
            "restarts",
            ", ".join(f"at step {event['step']:,}" for event in restarts) or "none",
        ),
    ]
    for name, model in results["models"].items() if results else ():
        table.append((f"model {name}", f"fingerprint {model['fingerprint']}"))
    if tuned:
        table.append(("tuning", f"inputs {tuned['inputs']}"))
    if manifest.fingerprint != env["data_fingerprint"]:
        table.insert(
            2, ("data now", f"{manifest.folder} has changed since: {manifest.fingerprint}")
        )
    return table


def duration(seconds: float) -> str:
    """45 s, 3 min 20 s, 2 h 5 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
