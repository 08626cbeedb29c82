"""The part of the report that compares several runs."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from conf.text import flatten, format_duration
from eval.report.curves import smooth
from eval.report.page_run import energy
from eval.report.run_folder import RunFolder, read_run
from model.flops import parameters
from pages.drawing import LINE_STYLES, Drawing, draw
from pages.svg import Chart, Series, short_number

NOT_COMPARED = ("name", "run_dir")
"""Settings that always differ between runs."""

Runs = Mapping[str, RunFolder]
Rows = list[tuple[str, list[str]]]
"""Rows of a table: a label, and one value per run."""


def compare_runs(run: RunFolder, others: Mapping[str, str]) -> dict[str, Any]:
    """Returns loss curves over tokens, key figures, and the settings that differ.

    others: run folders, keyed by the names on the page.

    Raises:
        InputError: a folder is not a run folder, or has no step yet.
    """
    runs = {run.config["name"]: run}
    for name, path in others.items():
        label = name if name not in runs else f"{name} (other)"
        runs[label] = read_run(Path(path), f"others.{name}")
    return {
        "charts": [training_loss(runs), validation_loss(runs)],
        "names": list(runs),
        "figures": key_figures(runs),
        "settings": differing_settings(runs),
    }


def training_loss(runs: Runs) -> Drawing:
    """Draws the smoothed training loss of all runs."""
    lines = [
        Series(
            name,
            smooth([(r["tokens"], r["loss"]) for r in run.train if "loss" in r]),
            line_style(number),
        )
        for number, (name, run) in enumerate(runs.items())
    ]
    return draw(Chart("Training loss", "nats per token, smoothed", lines), is_wide=True)


def validation_loss(runs: Runs) -> Drawing:
    """Draws the held-out loss of all runs."""
    lines = [
        Series(
            name, [(r["tokens"], r["loss"]) for r in run.validation], line_style(number), dots=True
        )
        for number, (name, run) in enumerate(runs.items())
    ]
    return draw(Chart("Validation loss", "nats per token", lines), is_wide=True)


def line_style(number: int) -> str:
    """Returns the CSS class of the nth line of a chart."""
    return f"s{number % LINE_STYLES}"


def key_figures(runs: Runs) -> Rows:
    """Returns rows of key figures with one column per run."""

    def figures(run: RunFolder) -> dict[str, str]:
        last = run.train[-1]
        seconds = sum(record["step_seconds"] for record in run.train)
        rate = statistics.median(record["tokens_per_second"] for record in run.train)
        return {
            "state": "finished" if run.is_finished else f"in progress, step {last['step']:,}",
            "parameters": short_number(parameters(run.model)),
            "tokens": f"{last['tokens']:,}",
            "last validation loss": f"{run.validation[-1]['loss']:.4f}" if run.validation else "",
            "tokens/s, median": short_number(rate),
            "time in steps": f"{format_duration(seconds)} x {run.env['world_size']}",
            "energy": energy(run) if run.events("energy") else "",
            "restarts": str(len(run.events("resume"))),
        }

    columns = [figures(run) for run in runs.values()]
    rows = [(key, [column[key] for column in columns]) for key in columns[0]]
    return [(key, values) for key, values in rows if any(values)]


def differing_settings(runs: Runs) -> Rows:
    """Returns the settings that are not the same in all runs."""
    configs = [flatten(run.config) for run in runs.values()]
    keys = dict.fromkeys(key for config in configs for key in config)
    rows = [
        (key, [str(config.get(key, "")) for config in configs])
        for key in keys
        if key not in NOT_COMPARED
    ]
    return [(key, values) for key, values in rows if len(set(values)) > 1]
