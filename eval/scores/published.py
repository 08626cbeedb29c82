"""Published scores of the suites in `conf/tasks/`, for comparison with our own.

Each file in `published/` is one table of a report, with `title`, `source`, and `models` with their
scores. The table of a suite has `suite`, `tasks` (the columns) and scores in percent, or only an
average per model. Tables of other measurements, such as scores by a judge model, have `columns`.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from rich.box import SIMPLE_HEAD
from rich.table import Table

from conf.errors import one_of
from conf.text import table_console
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
"""Short task names, used as column headings."""


@dataclass(frozen=True)
class Row:
    """One model of a suite's table.

    scores, errors: values and standard errors in percent, None if unknown.
    source: the report that published the scores, None for our own scores.
    published_average: the average, if the report gives no scores per task.
    """

    model: str
    scores: list[float | None]
    errors: list[float | None]
    source: str | None = None
    published_average: float | None = None

    @property
    def average(self) -> float | None:
        """Mean score over the tasks, or the published average if a score is missing."""
        known = [score for score in self.scores if score is not None]
        return statistics.fmean(known) if len(known) == len(self.scores) else self.published_average


@dataclass(frozen=True)
class SuiteTable:
    """The scores of a suite, with one column per task and one row per model."""

    suite: str
    tasks: list[str]
    rows: list[Row]

    @property
    def heads(self) -> list[str]:
        """Column headings: short names of the tasks."""
        return [SHORT.get(task, task) for task in self.tasks]


def published_rows(suite: str) -> list[Row]:
    """Returns the published models of a suite, with scores in the suite's task order."""
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
    """Returns all published tables, sorted by file name."""
    return [yaml.safe_load(path.read_text()) for path in sorted(FOLDER.glob("*.yaml"))]


@dataclass
class PublishedConfig:
    """Configuration of `published`.

    suite: name of the suite whose table is printed, null for all tables.
    """

    suite: str | None = None

    def __post_init__(self) -> None:
        if self.suite is not None:
            one_of("suite", self.suite, known_suites())


def print_published(config: PublishedConfig) -> None:
    """Prints the published tables."""
    console = table_console()
    for suite in [config.suite] if config.suite else known_suites():
        tasks = [choice.task for choice in suite_choices(suite)]
        console.print(render_suite(SuiteTable(suite, tasks, published_rows(suite))))
    for content in published_files() if config.suite is None else []:
        if "columns" in content:
            console.print(content["title"], render_other(content), content["source"], sep="\n")


def render_other(content: dict[str, Any]) -> Table:
    """Renders a published table that does not belong to a suite."""
    table = Table(box=SIMPLE_HEAD)
    table.add_column("model", no_wrap=True)
    columns = []
    for name, scores in zip(
        content["columns"], zip(*content["models"].values(), strict=True), strict=True
    ):
        table.add_column(name, justify="right")
        texts = ["" if score is None else str(score) for score in scores]
        decimals = max(len(text.partition(".")[2]) for text in texts)
        columns.append([text and f"{float(text):.{decimals}f}" for text in texts])
    for model, row in zip(content["models"], zip(*columns, strict=True), strict=True):
        table.add_row(model, *row)
    return table


def suite_tables(results: dict[str, Any]) -> list[SuiteTable]:
    """Returns one table per suite in the results, with our models above the published ones."""
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
                score = entry["metrics"].get(metric, {"value": None, "stderr": None})
                scores.append(_percent(score["value"]))
                errors.append(_percent(score["stderr"]))
            rows.append(Row(name, scores, errors))
        rows += published_rows(suite)
        tables.append(SuiteTable(suite, [choice.task for choice in choices], rows))
    return tables


def render_suite(suite: SuiteTable) -> Table:
    """Renders the table of a suite with one row per model, in the format of the reports."""
    sources = list(dict.fromkeys(row.source for row in suite.rows if row.source))
    notes = [f"[{number}] {source}" for number, source in enumerate(sources, 1)]
    table = Table(
        title=f"{suite.suite}, percent",
        caption="\n".join(notes),
        title_justify="left",
        caption_justify="left",
        box=SIMPLE_HEAD,
        padding=(0, 0, 0, 1),
    )
    table.add_column("model", no_wrap=True)
    for head in [*suite.heads, "average"]:
        table.add_column(head, justify="right")
    for row in suite.rows:
        mark = f" [{sources.index(row.source) + 1}]" if row.source else ""
        cells = [
            "" if score is None else f"{score:.2f}" + ("" if error is None else f"\n±{error:.1f}")
            for score, error in zip(row.scores, row.errors, strict=True)
        ]
        average = "" if row.average is None else f"{row.average:.2f}"
        table.add_row(row.model + mark, *cells, average, style="" if row.source else "bold")
    return table


def _percent(fraction: float | None) -> float | None:
    return None if fraction is None else 100 * fraction
