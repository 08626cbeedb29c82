"""Published scores of the suites in `conf/tasks/`, and tables of ours beside them.

Each file of `eval/published/` is one table of a report: `title`, `source` and `models` with their
scores. One of a suite has `suite`, `tasks` (the columns) and scores in percent, or the average
alone. Others, of what takes a judge or other tools to measure, have `columns`.
"""

from __future__ import annotations

import statistics
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from conf.errors import InputError, did_you_mean
from eval.scores.results import metric_of
from eval.tasks.suites import known_suites, suite_choices

FOLDER = Path(__file__).parent / "published"
SHORT = {
    "arc_challenge": "ARC-c",
    "arc_easy": "ARC-e",
    "bbh_cot_fewshot": "BBH",
    "boolq": "BoolQ",
    "commonsense_qa": "CSQA",
    "coqa": "CoQA",
    "gsm8k": "GSM8K",
    "hellaswag": "HS",
    "mmlu": "MMLU",
    "openbookqa": "OBQA",
    "piqa": "PIQA",
    "sciq": "SciQ",
    "triviaqa": "TrivQA",
    "truthfulqa_mc2": "TQA",
    "winogrande": "Wino",
}
"""Names for the heads of narrow columns."""
LOG_WIDTH = 140
"""In columns, where the output goes to a file."""


@dataclass(frozen=True)
class Row:
    """A model of a suite's table; scores and errors in percent, None where there is none.

    source: the report that published it, None for a model of ours.
    average_alone: where it is all that is known.
    """

    model: str
    scores: list[float | None]
    errors: list[float | None]
    source: str | None = None
    average_alone: float | None = None

    @property
    def average(self) -> float | None:
        """Over the tasks, where all have a score."""
        known = [score for score in self.scores if score is not None]
        return statistics.fmean(known) if len(known) == len(self.scores) else self.average_alone


@dataclass(frozen=True)
class SuiteTable:
    """A suite's tasks, our models and those of the reports."""

    suite: str
    tasks: list[str]
    rows: list[Row]

    @property
    def heads(self) -> list[str]:
        """Short names of the tasks."""
        return [SHORT.get(task, task) for task in self.tasks]


def published(suite: str) -> list[Row]:
    """Rows of all published tables of a suite, in the order of its tasks."""
    order = [choice.task for choice in suite_choices(suite)]
    rows = []
    unknown: list[float | None] = [None] * len(order)
    for content in published_files():
        if content.get("suite") != suite:
            continue
        for model, scores in content["models"].items():
            if isinstance(scores, float):
                rows.append(Row(model, unknown, unknown, content["source"], scores))
                continue
            by_task = dict(zip(content["tasks"], scores, strict=True))
            rows.append(Row(model, [by_task[t] for t in order], unknown, content["source"]))
    return rows


def published_files() -> list[dict[str, Any]]:
    """All tables, in the order of their names."""
    return [yaml.safe_load(path.read_text()) for path in sorted(FOLDER.glob("*.yaml"))]


@dataclass
class PublishedConfig:
    """suite: prints only what is published of this one; null for all tables."""

    suite: str | None = None

    def __post_init__(self) -> None:
        if self.suite is not None and self.suite not in known_suites():
            raise InputError(
                f"suite={self.suite}: expected one of {', '.join(known_suites())}"
                f"{did_you_mean(self.suite, known_suites())}."
            )


def print_published(config: PublishedConfig) -> None:
    """Prints the tables."""
    console = Console(width=None if sys.stdout.isatty() else LOG_WIDTH)
    for suite in [config.suite] if config.suite else known_suites():
        tasks = [choice.task for choice in suite_choices(suite)]
        console.print(printed(SuiteTable(suite, tasks, published(suite))))
    for content in published_files() if config.suite is None else []:
        if "columns" in content:
            console.print(content["title"], as_published(content), content["source"], sep="\n")


def as_published(content: dict[str, Any]) -> Table:
    """A table that is of no suite."""
    made = Table(box=SIMPLE_HEAD)
    made.add_column("model", no_wrap=True)
    columns = []
    for name, scores in zip(
        content["columns"], zip(*content["models"].values(), strict=True), strict=True
    ):
        made.add_column(name, justify="right")
        texts = ["" if score is None else str(score) for score in scores]
        decimals = max(len(text.partition(".")[2]) for text in texts)
        columns.append([text and f"{float(text):.{decimals}f}" for text in texts])
    for model, row in zip(content["models"], zip(*columns, strict=True), strict=True):
        made.add_row(model, *row)
    return made


def suite_tables(results: dict[str, Any], beside: bool = True) -> list[SuiteTable]:
    """A table for every suite that a model of the results was asked for.

    beside: also the published models.
    """
    models = results["models"]
    suites = {suite: None for m in models.values() for suite in m["settings"].get("suites", [])}
    tables = []
    for suite in suites:
        choices = suite_choices(suite)
        rows = []
        for name, model in models.items():
            if suite not in model["settings"].get("suites", []):
                continue
            scores: list[float | None] = []
            errors: list[float | None] = []
            for choice in choices:
                entry = model["tasks"].get(choice.task, {"metrics": {}})
                metric = metric_of(entry, choice.metric)
                found = entry["metrics"].get(metric, {"value": None, "stderr": None})
                scores.append(_percent(found["value"]))
                errors.append(_percent(found["stderr"]))
            rows.append(Row(name, scores, errors))
        rows += published(suite) if beside else []
        tables.append(SuiteTable(suite, [choice.task for choice in choices], rows))
    return tables


def printed(table: SuiteTable) -> Table:
    """As the reports print it: a model a row."""
    sources = list(dict.fromkeys(row.source for row in table.rows if row.source))
    notes = [f"[{number}] {source}" for number, source in enumerate(sources, 1)]
    made = Table(
        title=f"{table.suite}, percent",
        caption="\n".join(notes),
        title_justify="left",
        caption_justify="left",
        box=SIMPLE_HEAD,
        padding=(0, 0, 0, 1),
    )
    made.add_column("model", no_wrap=True)
    for head in [*table.heads, "average"]:
        made.add_column(head, justify="right")
    for row in table.rows:
        mark = f" [{sources.index(row.source) + 1}]" if row.source else ""
        cells = [
            "" if score is None else f"{score:.2f}" + ("" if error is None else f"\n±{error:.1f}")
            for score, error in zip(row.scores, row.errors, strict=True)
        ]
        average = "" if row.average is None else f"{row.average:.2f}"
        made.add_row(row.model + mark, *cells, average, style="" if row.source else "bold")
    return made


def _percent(share: float | None) -> float | None:
    return None if share is None else 100 * share
