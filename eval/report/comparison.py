"""The part of the report that sets several runs side by side."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from eval.report.curves import smooth
from eval.report.page_run import duration, energy
from eval.report.run_folder import RunFolder, read_run
from model.flops import parameters
from pages.drawing import draw
from pages.svg import Chart, Series, short_number

NOT_COMPARED = ("name", "run_dir")
"""Of the config: they differ in any case."""


def beside(run: RunFolder, others: Mapping[str, str]) -> dict[str, Any]:
    """Curves of loss over tokens, key figures, and the settings that differ.

    others: run folders by the names that the page shows.

    Raises:
        InputError: a folder is none of a run, or has no step yet.
    """
    runs = {run.config["name"]: run}
    for name, path in others.items():
        label = name if name not in runs else f"{name} (other)"
        runs[label] = read_run(Path(path), f"others.{name}")
    return {
        "charts": [losses(runs), validations(runs)],
        "names": list(runs),
        "figures": figures(runs),
        "settings": settings(runs),
    }


def losses(runs: Mapping[str, RunFolder]) -> Any:
    """Training loss of all runs, smoothed."""
    lines = [
        Series(
            name,
            smooth([(r["tokens"], r["loss"]) for r in run.train if "loss" in r]),
            style(number),
        )
        for number, (name, run) in enumerate(runs.items())
    ]
    return draw(Chart("Training loss", "nats per token, smoothed", lines), is_wide=True)


def validations(runs: Mapping[str, RunFolder]) -> Any:
    """Held-out loss of all runs."""
    lines = [
        Series(name, [(r["tokens"], r["loss"]) for r in run.validation], style(number), dots=True)
        for number, (name, run) in enumerate(runs.items())
    ]
    return draw(Chart("Validation loss", "nats per token", lines), is_wide=True)


def style(number: int) -> str:
    """A colour of the page."""
    return f"s{number % 8}"


def figures(runs: Mapping[str, RunFolder]) -> list[tuple[str, list[str]]]:
    """Rows of what matters, a column a run."""

    def of(run: RunFolder) -> dict[str, str]:
        last = run.train[-1]
        seconds = sum(record["step_seconds"] for record in run.train)
        rate = statistics.median(record["tokens_per_second"] for record in run.train)
        return {
            "state": "finished" if run.is_finished else f"in progress, step {last['step']:,}",
            "parameters": short_number(parameters(run.model)),
            "tokens": f"{last['tokens']:,}",
            "last validation loss": f"{run.validation[-1]['loss']:.4f}" if run.validation else "",
            "tokens/s, median": short_number(rate),
            "time in steps": f"{duration(seconds)} x {run.env['world_size']}",
            "energy": energy(run) if run.events("energy") else "",
            "restarts": str(len(run.events("resume"))),
        }

    found = [of(run) for run in runs.values()]
    rows = [(key, [one[key] for one in found]) for key in found[0]]
    return [(key, values) for key, values in rows if any(values)]


def settings(runs: Mapping[str, RunFolder]) -> list[tuple[str, list[str]]]:
    """The settings that are not the same in all runs."""
    flats = [flat(run.config) for run in runs.values()]
    keys = dict.fromkeys(key for one in flats for key in one)
    rows = [(key, [one.get(key, "") for one in flats]) for key in keys if key not in NOT_COMPARED]
    return [(key, values) for key, values in rows if len(set(values)) > 1]


def flat(config: Any, prefix: str = "") -> dict[str, str]:
    """Dotted keys of a config with what they hold."""
    if not isinstance(config, dict):
        return {prefix: str(config)}
    found: dict[str, str] = {}
    for key, value in config.items():
        found |= flat(value, f"{prefix}.{key}" if prefix else str(key))
    return found
