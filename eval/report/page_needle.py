"""Heat maps of needle tasks: how often the fact was found, by length of the text and depth."""

from __future__ import annotations

from typing import Any

from eval.report.run_folder import Record, RunFolder
from eval.tasks.forms import by_depth

METRICS = {
    "acc": "right word among the choices",
    "exact_match": "right word in greedy decoding",
}
"""Metrics that are drawn, each with its meaning."""


def heat_maps(results: Record) -> list[dict[str, Any]]:
    """Returns one map per corpus, model and metric.

    A row is a depth and a column a length. A cell has the fraction of samples whose fact was found,
    as a number and as text in percent, and is None if no sample was scored.
    """
    maps = []
    for name in _names(results):
        for model, scored in results["models"].items():
            tasks = [
                task
                for task in scored["tasks"].values()
                if task.get("needle") and task["needle"]["name"] == name
            ]
            for metric, meaning in METRICS.items():
                found = fractions([task for task in tasks if metric in task["each"]], metric)
                if found:
                    maps.append(_map(name, model, metric, meaning, tasks, found))
    return maps


def training_maps(run: RunFolder) -> list[dict[str, Any]]:
    """Returns the maps of the needle tasks that a run scored, at their last scores."""
    scored = {
        task: (record["step"], found["needle"])
        for record in run.of_kind("eval")
        for task, found in record["tasks"].items()
        if "needle" in found
    }
    models: dict[str, Any] = {}
    for task, (step, needle) in scored.items():
        entry = {"needle": needle, "each": needle["each"], "chance": needle["chance"]}
        models.setdefault(f"step {step:,}", {"tasks": {}})["tasks"][task] = entry
    return heat_maps({"models": models})


def fractions(tasks: list[dict[str, Any]], metric: str) -> dict[tuple[float, int], list[int]]:
    """Returns the scores of the samples of needle tasks, keyed by depth in percent and length."""
    found: dict[tuple[float, int], list[int]] = {}
    for task in tasks:
        needle = task["needle"]
        for depth, scores in by_depth(needle, task["each"][metric]).items():
            found.setdefault((depth, needle["length"]), []).extend(scores)
    return found


def short_length(tokens: int) -> str:
    """Formats a number of tokens, such as 64k for 65536 and 1,000 for 1000."""
    return f"{tokens:,}" if tokens % 1024 else f"{tokens // 1024}k"


def _names(results: Record) -> list[str]:
    """Returns the corpora with needle tasks."""
    tasks = [task for model in results["models"].values() for task in model["tasks"].values()]
    return list(dict.fromkeys(task["needle"]["name"] for task in tasks if task.get("needle")))


def _map(
    name: str,
    model: str,
    metric: str,
    meaning: str,
    tasks: list[dict[str, Any]],
    found: dict[tuple[float, int], list[int]],
) -> dict[str, Any]:
    """Returns the content of a map."""
    lengths = sorted({length for _, length in found})
    depths = sorted({depth for depth, _ in found})
    counts = sorted({len(scores) for scores in found.values()})
    samples = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    facts = sorted({task["needle"]["facts"] for task in tasks})
    chance = tasks[0]["chance"] if metric == "acc" else None
    return {
        "title": model,
        "unit": f"{metric.replace('_', ' ')}, percent",
        "about": f"{name}: {meaning}, {samples} samples per cell, "
        f"{' or '.join(map(str, facts))} facts in each text."
        + (f" Random guessing: {chance:.0%}." if chance is not None else ""),
        "lengths": [short_length(length) for length in lengths],
        "rows": [
            {
                "depth": f"{depth:g}%",
                "cells": [_cell(found.get((depth, length))) for length in lengths],
            }
            for depth in depths
        ],
    }


def _cell(scores: list[int] | None) -> dict[str, Any] | None:
    """Returns the content of a cell, or None if it has no samples."""
    if not scores:
        return None
    fraction = sum(scores) / len(scores)
    return {"text": f"{100 * fraction:.0f}", "fraction": f"{fraction:.2f}"}
