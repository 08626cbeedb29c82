"""`python -m eval compare`: compares result files and marks the significant differences.

Models that answered the same samples are compared sample by sample. Questions that are hard for one
model tend to be hard for another, so this paired test resolves much smaller differences than two
separate standard errors. Otherwise the standard errors are combined as for independent samples.
"""

from __future__ import annotations

import json
import math
import statistics
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import MISSING
from rich.box import SIMPLE_HEAD
from rich.table import Table

from conf.errors import InputError, did_you_mean
from conf.output_kinds import DIFFERENCES
from conf.outputs import Output
from conf.text import table_console
from eval.scores.published import render_suite, suite_tables
from eval.scores.results import (
    FORMAT,
    FRACTIONS,
    LOWER_IS_BETTER,
    load_results,
    rows,
    scores_table,
)

SIGNIFICANT = 2.0
"""Number of standard errors above which a difference is marked."""


@dataclass
class CompareConfig:
    """Configuration of `compare`.

    results: result files written by lm_eval.
    models: names of the models to show; empty for all.
    baseline: the model that the others are compared with, null for the first.
    out: a JSON file for the differences, null for none.
    overwrite: replaces an existing file of differences.
    """

    results: list[str] = MISSING
    models: list[str] = field(default_factory=list)
    baseline: str | None = None
    out: str | None = None
    overwrite: bool = False


@dataclass(frozen=True)
class Difference:
    """Difference between the scores of a model and the baseline.

    stderr: standard error of the difference, None if unknown.
    paired: whether stderr comes from a sample-by-sample comparison.
    """

    task: str
    metric: str
    model: str
    value: float
    stderr: float | None
    paired: bool

    @property
    def is_significant(self) -> bool:
        """True if the difference is unlikely to be chance."""
        return self.stderr is not None and abs(self.value) > SIGNIFICANT * self.stderr


def compare(config: CompareConfig) -> None:
    """Prints the tables of scores and differences and writes `out`.

    Raises:
        InputError: a file is missing or is not a result file, or a model is not in the results.
    """
    output = None
    if config.out is not None:
        output = Output(config.out, DIFFERENCES, config.overwrite, config.results)
        output.check()
    results = merge_results([Path(path) for path in config.results])
    names = config.models or list(results["models"])
    baseline = config.baseline or names[0]
    for key, name in [("baseline", baseline), *(("models", name) for name in names)]:
        if name not in results["models"]:
            raise InputError(
                f"{key}={name}: the results have no model of this "
                f"name{did_you_mean(name, results['models'])}."
            )
    chosen = dict.fromkeys([baseline, *names])
    results["models"] = {name: results["models"][name] for name in chosen}
    all_differences = differences(results, baseline)
    console = table_console()
    console.print(scores_table(results))
    for suite in suite_tables(results):
        console.print(render_suite(suite))
    if all_differences:
        console.print(differences_table(all_differences, baseline))
    if output:
        content = {"baseline": baseline, "differences": [asdict(one) for one in all_differences]}
        output.write(json.dumps(content, indent=1))


def merge_results(paths: list[Path]) -> dict[str, Any]:
    """Merges the models of several result files.

    If a model was scored on different tasks in each file, its scores are combined. If two different
    models have the same name, the name of the later one is prefixed with the name of its file.
    """
    if not paths:
        raise InputError(
            "results=[]: expected at least one file. Give files written by python -m eval lm_eval."
        )
    models: dict[str, Any] = {}
    for path in paths:
        for name, model in load_results(path)["models"].items():
            known = models.get(name)
            if known is None:
                models[name] = model
            elif known.get("weights") == model.get("weights") and not (
                known["tasks"].keys() & model["tasks"].keys()
            ):
                models[name] = model | {
                    "tasks": known["tasks"] | model["tasks"],
                    "settings": model["settings"]
                    | {"suites": known["settings"]["suites"] + model["settings"]["suites"]},
                }
            else:
                models[f"{path.stem}/{name}"] = model
    return {"format": FORMAT, "models": models}


def differences(results: dict[str, Any], baseline: str) -> list[Difference]:
    """Returns each model's differences from the baseline, per row of the score table."""
    models = results["models"]
    all_differences = []
    for task, metric, scores in rows(results):
        if baseline not in scores:
            continue
        first = models[baseline]["tasks"][task]
        for name in scores:
            if name == baseline:
                continue
            other = models[name]["tasks"][task]
            stderr = paired_stderr(first, other, metric)
            is_paired = stderr is not None
            if stderr is None:
                both = scores[name]["stderr"], scores[baseline]["stderr"]
                stderr = math.hypot(*both) if None not in both else None
            value = scores[name]["value"] - scores[baseline]["value"]
            all_differences.append(Difference(task, metric, name, value, stderr, is_paired))
    return all_differences


def paired_stderr(one: dict[str, Any], other: dict[str, Any], metric: str) -> float | None:
    """Returns the standard error of the mean difference per sample.

    The result is None if the two entries do not cover the same samples.
    """
    if one.get("samples_sha256") != other.get("samples_sha256"):
        return None
    first, second = (entry.get("each", {}).get(metric, "") for entry in (one, other))
    if len(first) != len(second) or len(first) < 2:
        return None
    deltas = [int(a) - int(b) for a, b in zip(first, second, strict=True)]
    return statistics.stdev(deltas) / math.sqrt(len(deltas))


def differences_table(all_differences: list[Difference], baseline: str) -> Table:
    """Returns a table with one row per task and metric, and one column per model."""
    names = list(dict.fromkeys(one.model for one in all_differences))
    table = Table(
        title=f"difference to {baseline} ± standard error",
        title_justify="left",
        caption=f"* more than {SIGNIFICANT:.0f} standard errors; p: paired by sample",
        caption_justify="left",
        box=SIMPLE_HEAD,
    )
    table.add_column("task", overflow="fold")
    table.add_column("metric")
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
    lines: dict[tuple[str, str], dict[str, Difference]] = {}
    for one in all_differences:
        lines.setdefault((one.task, one.metric), {})[one.model] = one
    for (task, metric), by_model in lines.items():
        arrow = " ↓" if metric in LOWER_IS_BETTER else ""
        cells = (format_difference(by_model[n]) if n in by_model else "" for n in names)
        table.add_row(task, metric + arrow, *cells)
    return table


def format_difference(one: Difference) -> str:
    """Formats a difference; fractions are shown in percentage points."""
    scale, digits = (100, 1) if one.metric.split(",")[0] in FRACTIONS else (1, 3)
    error = "" if one.stderr is None else f" ± {scale * one.stderr:.{digits}f}"
    mark = ("*" if one.is_significant else " ") + ("p" if one.paired else " ")
    return f"{scale * one.value:+.{digits}f}{error} {mark}"
