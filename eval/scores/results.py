"""The JSON file of scores that `lm_eval` writes, and the table that it prints.

    {"format": 1, "packages": {...}, "models": {name: {"folder", "weights", "fingerprint",
     "seconds", "settings", "tasks": {task: {"metrics": {metric: {"value", "stderr"}}, "samples",
     "chance", "num_fewshot", "version", "output_type", "each": {metric: "0110..."},
     "samples_sha256", "shown", "group"}}}}}

`settings.computed_in` is the type of the model's matrix products, which results of older versions
lack. `stderr` is null where it is not known; `chance` is the accuracy of guessing, null where there
is no choice; `shown` is the metric that stands for the task in a suite's table, null for all;
`group` is the group that a task was run as a part of, null for what was asked for by name; `each`
has a digit for each sample where a metric is 0 or 1, and `samples_sha256` is the same for the same
samples.
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
"""In the order in which they are shown: the first stands for a task where there is room for one."""
SHARES = (*ACCURACIES, "exact_match", "f1")
# The same number as bits per byte in other units: in the file, not in the table.
OTHER_UNITS = ("byte_perplexity", "word_perplexity")


def load_results(path: Path, key: str = "results") -> dict[str, Any]:
    """Reads the file; raises InputError where it is missing or not of this kind."""
    if not path.is_file():
        raise InputError(f"{key}={path} does not exist: make it with python -m eval lm_eval.")
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise InputError(f"{key}={path} is not JSON: {error}.") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT or "models" not in content:
        raise InputError(f"{key}={path} holds no results of python -m eval lm_eval.")
    return content


def rows(results: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, dict[str, Any]]]]:
    """(task, metric, scores by model) for every line of a table, in the order of the tasks."""
    models = results["models"]
    tasks = {task: None for model in models.values() for task in model["tasks"]}
    for task in tasks:
        scored = {
            name: model["tasks"][task] for name, model in models.items() if task in model["tasks"]
        }
        found = {metric: None for entry in scored.values() for metric in entry["metrics"]}
        metrics = {metric: None for metric in (*ACCURACIES, *found) if metric in found}
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
    """The key of a metric of a suite in a task's scores: lm-eval adds the name of a filter."""
    found = (m for m in entry["metrics"] if shown in (m, m.split(",")[0]))
    return next(found, None)


def in_group(tasks: dict[str, Any], task: str) -> bool:
    """Whether the score of a group stands for the task."""
    group = tasks[task].get("group")
    return group is not None and bool(tasks[group]["metrics"])


def chance(entry: dict[str, Any], metric: str) -> float | None:
    """What guessing scores in a metric of a task."""
    return entry["chance"] if metric in ACCURACIES else None


def format_score(score: dict[str, Any], metric: str) -> tuple[str, str]:
    """A value and its standard error, empty where it is not known: shares in percent."""
    value, stderr = score["value"], score["stderr"]
    if metric.split(",")[0] in SHARES:
        return f"{value:.1%}", f"{100 * stderr:.1f}" if stderr is not None else ""
    digits = 3 if value < 100 else 0
    return f"{value:,.{digits}f}", f"{stderr:.{digits}f}" if stderr is not None else ""


def computed_in(results: dict[str, Any]) -> str:
    """Returns what the models were computed in, as a clause: once where it is the same for all,
    empty where no model says."""
    found: dict[str, list[str]] = {}
    for name, model in results["models"].items():
        found.setdefault(model["settings"].get("computed_in", ""), []).append(name)
    found.pop("", None)
    if not found:
        return ""
    if len(found) == 1 and len(next(iter(found.values()))) == len(results["models"]):
        return f", computed in {next(iter(found))}"
    parts = (f"{', '.join(names)} in {dtype}" for dtype, names in found.items())
    return f", computed: {'; '.join(parts)}"


def table(results: dict[str, Any]) -> Table:
    """The models side by side."""
    title = f"value ± standard error{computed_in(results)}"
    made = Table(title=title, title_justify="left", box=SIMPLE_HEAD)
    made.add_column("task", overflow="fold")
    made.add_column("metric")
    for name in results["models"]:
        made.add_column(name, justify="right", no_wrap=True)
    made.add_column("chance", justify="right", style="dim")
    before = ""
    for task, metric, scores in rows(results):
        guess = next(iter(scores.values()))["chance"]
        made.add_row(
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
    return made
