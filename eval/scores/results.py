"""The JSON result file that `lm_eval` writes, and the table that it prints.

The file has this form:

    {"format": 1, "packages": {...}, "models": {name: {"folder", "weights", "fingerprint",
     "seconds", "settings", "tasks": {task: {"metrics": {metric: {"value", "stderr"}}, "samples",
     "chance", "num_fewshot", "version", "output_type", "each": {metric: "0110..."},
     "samples_sha256", "shown", "group", "needle"}}}}}

- `settings.computed_in`: dtype of the model's matrix products; older files lack it.
- `stderr`: standard error, null if unknown.
- `chance`: accuracy of random guessing, null if the task is not multiple choice.
- `shown`: the metric that tables show for the task, null if they show every metric.
- `group`: the group that the task belongs to, null if the task was selected by name.
- `each`: one digit per sample, for metrics that are 0 or 1 for every sample.
- `samples_sha256`: hash of the samples, equal for the same samples.
- `needle`: of needle tasks only, {"name", "length", "depths", "facts"}; sample i is at
  `depths[i % len(depths)]` (`eval.tasks.needle`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from conf.errors import InputError

FORMAT = 1
LOWER_IS_BETTER = ("bits_per_byte", "byte_perplexity", "word_perplexity", "perplexity")
ACCURACIES = ("acc_mutual_info", "acc_norm", "acc")
"""Accuracy metrics by priority; where only one is shown, it is the first that the task has."""
FRACTIONS = (*ACCURACIES, "exact_match", "f1")
"""Metrics from 0 to 1, shown in percent."""
# Bits per byte in other units. They are stored in the file, but not shown in the table.
OTHER_UNITS = ("byte_perplexity", "word_perplexity")


def load_results(path: Path, key: str = "results") -> dict[str, Any]:
    """Reads a result file.

    Raises:
        InputError: the file is missing or is not a result file.
    """
    if not path.is_file():
        raise InputError(
            f"{key}={path}: the file does not exist. Write it with python -m eval lm_eval."
        )
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise InputError(
            f"{key}={path}: the file is not JSON ({error}). Give a file written by python -m eval "
            "lm_eval."
        ) from None
    if not isinstance(content, dict) or content.get("format") != FORMAT or "models" not in content:
        raise InputError(
            f"{key}={path}: the file is not a result file. Give a file written by python -m eval "
            "lm_eval."
        )
    return content


def rows(results: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, dict[str, Any]]]]:
    """Yields (task, metric, scores by model) for each row of a table, in the order of the tasks."""
    models = results["models"]
    tasks = {task: None for model in models.values() for task in model["tasks"]}
    for task in tasks:
        scored = {
            name: model["tasks"][task] for name, model in models.items() if task in model["tasks"]
        }
        names = {metric: None for entry in scored.values() for metric in entry["metrics"]}
        metrics = {metric: None for metric in (*ACCURACIES, *names) if metric in names}
        if any(in_group(models[name]["tasks"], task) for name in scored):
            continue
        shown = next(iter(scored.values()))["shown"]
        if shown is None and "bits_per_byte" in metrics:
            metrics = {metric: None for metric in metrics if metric not in OTHER_UNITS}
        for metric in metrics:
            if shown is None or shown in (metric, metric.split(",")[0]):
                yield (
                    task,
                    metric,
                    {
                        name: {**entry["metrics"][metric], "chance": chance(entry, metric)}
                        for name, entry in scored.items()
                        if metric in entry["metrics"]
                    },
                )


def metric_of(entry: dict[str, Any], shown: str | None) -> str | None:
    """Returns a metric's key in a task's entry, which may include the name of a filter."""
    keys = (m for m in entry["metrics"] if shown in (m, m.split(",")[0]))
    return next(keys, None)


def in_group(tasks: dict[str, Any], task: str) -> bool:
    """Returns True if a task is part of a group that has its own score."""
    group = tasks[task].get("group")
    return group is not None and bool(tasks[group]["metrics"])


def chance(entry: dict[str, Any], metric: str) -> float | None:
    """Returns the score of random guessing, or None if it is unknown."""
    return entry["chance"] if metric in ACCURACIES else None


def format_score(score: dict[str, Any], metric: str) -> tuple[str, str]:
    """Formats a value and its standard error, empty if unknown; fractions are in percent."""
    value, stderr = score["value"], score["stderr"]
    if metric.split(",")[0] in FRACTIONS:
        return f"{value:.1%}", f"{100 * stderr:.1f}" if stderr is not None else ""
    digits = 3 if value < 100 else 0
    return f"{value:,.{digits}f}", f"{stderr:.{digits}f}" if stderr is not None else ""


def computed_in(results: dict[str, Any]) -> str:
    """Returns a clause that names the dtypes the models computed in, to append to a sentence.

    The clause names the dtype once if all models share it, and is empty if no model states one.
    """
    by_dtype: dict[str, list[str]] = {}
    for name, model in results["models"].items():
        by_dtype.setdefault(model["settings"].get("computed_in", ""), []).append(name)
    by_dtype.pop("", None)
    if not by_dtype:
        return ""
    if len(by_dtype) == 1 and len(next(iter(by_dtype.values()))) == len(results["models"]):
        return f", computed in {next(iter(by_dtype))}"
    parts = (f"{', '.join(names)} in {dtype}" for dtype, names in by_dtype.items())
    return f", computed: {'; '.join(parts)}"


def scores_table(results: dict[str, Any]) -> Table:
    """Returns a table with one row per task and metric, and one column per model."""
    title = f"value ± standard error{computed_in(results)}"
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD)
    table.add_column("task", overflow="fold")
    table.add_column("metric")
    for name in results["models"]:
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("chance", justify="right", style="dim")
    before = ""
    for task, metric, scores in rows(results):
        guess = next(iter(scores.values()))["chance"]
        table.add_row(
            task if task != before else "",
            metric + (" ↓" if metric in LOWER_IS_BETTER else ""),
            *(
                " ± ".join(filter(None, format_score(scores[name], metric)))
                if name in scores
                else ""
                for name in results["models"]
            ),
            f"{guess:.1%}" if guess is not None else "",
        )
        before = task
    return table
