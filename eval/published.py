"""Published scores of the suites in `conf/tasks/`, and tables of ours beside them.

Each file of `eval/published/` is one table of a report: `suite`, `title`, `source`, `tasks` (the
columns) and `models` with their scores in percent.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from rich.box import SIMPLE_HEAD
from rich.table import Table

from eval.results import metric_of
from eval.suites import suite_choices

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


@dataclass(frozen=True)
class Row:
    """A model of a suite's table; scores and errors in percent, None where there is none.

    source: the report that published it, None for a model of ours.
    """

    model: str
    scores: list[float | None]
    errors: list[float | None]
    source: str | None = None

    @property
    def average(self) -> float | None:
        """Over the tasks, where all have a score."""
        known = [score for score in self.scores if score is not None]
        return statistics.fmean(known) if len(known) == len(self.scores) else None


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
    for path in sorted(FOLDER.glob("*.yaml")):
        content = yaml.safe_load(path.read_text())
        if content["suite"] != suite:
            continue
        for model, scores in content["models"].items():
            by_task = dict(zip(content["tasks"], scores, strict=True))
            rows.append(
                Row(model, [by_task[t] for t in order], [None] * len(order), content["source"])
            )
    return rows


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
