"""`python -m eval compare`: files of results side by side, with what differs by more than chance.

Models that answered the same samples are compared sample by sample, which tells far smaller
differences apart than two standard errors do: what is hard for one model is mostly hard for the
other. Elsewhere the errors are added as those of independent samples.
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
from rich.console import Console
from rich.table import Table

from conf.errors import InputError, did_you_mean
from conf.output_kinds import DIFFERENCES
from conf.outputs import Output
from eval.scores.harness import LOG_WIDTH
from eval.scores.published import printed, suite_tables
from eval.scores.results import FORMAT, LOWER_IS_BETTER, SHARES, load_results, rows, table

SIGNIFICANT = 2.0
"""Standard errors from which a difference is marked."""


@dataclass
class CompareConfig:
    """results: files of lm_eval; models: those to show, all where it is empty.

    baseline: the model that the others are compared with, null for the first.
    out: a JSON file for the differences, null for none; overwrite: replaces such a file.
    """

    results: list[str] = MISSING
    models: list[str] = field(default_factory=list)
    baseline: str | None = None
    out: str | None = None
    overwrite: bool = False


@dataclass(frozen=True)
class Difference:
    """A model's score minus the baseline's, and its standard error, None where it is not known.

    paired: the error is that of the differences of single samples.
    """

    task: str
    metric: str
    model: str
    value: float
    stderr: float | None
    paired: bool

    @property
    def is_significant(self) -> bool:
        """Whether chance is an unlikely reason."""
        return self.stderr is not None and abs(self.value) > SIGNIFICANT * self.stderr


def compare(config: CompareConfig) -> None:
    """Prints the tables and writes `out`.

    Raises:
        InputError: a file is missing or not of this kind, or a model is not in it.
    """
    output = None
    if config.out is not None:
        output = Output(config.out, DIFFERENCES, config.overwrite, config.results)
        output.check()
    results = merged([Path(path) for path in config.results])
    names = config.models or list(results["models"])
    baseline = config.baseline or names[0]
    for key, name in [("baseline", baseline), *(("models", name) for name in names)]:
        if name not in results["models"]:
            raise InputError(
                f"{key}={name}: no such model is in the results"
                f"{did_you_mean(name, results['models'])}."
            )
    chosen = dict.fromkeys([baseline, *names])
    results["models"] = {name: results["models"][name] for name in chosen}
    found = differences(results, baseline)
    console = Console(width=None if Console().is_terminal else LOG_WIDTH)
    console.print(table(results))
    for suite in suite_tables(results):
        console.print(printed(suite))
    if found:
        console.print(differences_table(found, baseline))
    if output:
        content = {"baseline": baseline, "differences": [asdict(one) for one in found]}
        output.write(json.dumps(content, indent=1))


def merged(paths: list[Path]) -> dict[str, Any]:
    """The models of several files. A model that was scored on other tasks in each has all of them;
    where a name stands for two models, the later one gets its file's name before it."""
    if not paths:
        raise InputError("results is empty: give at least one file of python -m eval lm_eval.")
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
    """Of every model to the baseline, for every line of the table of scores."""
    models = results["models"]
    found = []
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
            found.append(Difference(task, metric, name, value, stderr, is_paired))
    return found


def paired_stderr(one: dict[str, Any], other: dict[str, Any], metric: str) -> float | None:
    """Of the mean difference of single samples; None unless both hold the same ones."""
    if one.get("samples_sha256") != other.get("samples_sha256"):
        return None
    each, theirs = (entry.get("each", {}).get(metric, "") for entry in (one, other))
    if len(each) != len(theirs) or len(each) < 2:
        return None
    apart = [int(a) - int(b) for a, b in zip(each, theirs, strict=True)]
    return statistics.stdev(apart) / math.sqrt(len(apart))


def differences_table(found: list[Difference], baseline: str) -> Table:
    """A row a metric, a column a model."""
    names = list(dict.fromkeys(one.model for one in found))
    made = Table(
        title=f"difference to {baseline} ± standard error",
        title_justify="left",
        caption=f"* more than {SIGNIFICANT:.0f} standard errors; p: sample by sample",
        caption_justify="left",
        box=SIMPLE_HEAD,
    )
    made.add_column("task", overflow="fold")
    made.add_column("metric")
    for name in names:
        made.add_column(name, justify="right", no_wrap=True)
    lines: dict[tuple[str, str], dict[str, Difference]] = {}
    for one in found:
        lines.setdefault((one.task, one.metric), {})[one.model] = one
    for (task, metric), by_model in lines.items():
        arrow = " ↓" if metric in LOWER_IS_BETTER else ""
        cells = (written(by_model[n]) if n in by_model else "" for n in names)
        made.add_row(task, metric + arrow, *cells)
    return made


def written(one: Difference) -> str:
    """A difference as the table shows it: shares in points of percent."""
    scale, digits = (100, 1) if one.metric.split(",")[0] in SHARES else (1, 3)
    error = "" if one.stderr is None else f" ± {scale * one.stderr:.{digits}f}"
    mark = ("*" if one.is_significant else " ") + ("p" if one.paired else " ")
    return f"{scale * one.value:+.{digits}f}{error} {mark}"
