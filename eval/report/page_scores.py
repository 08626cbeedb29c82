"""The parts of the report with scores: our models side by side, and published models."""

from __future__ import annotations

from typing import Any

from eval.report.run_folder import Record
from eval.scores.published import suite_tables
from eval.scores.results import FRACTIONS, LOWER_IS_BETTER, computed_in, format_score, rows

METRIC_NOTES = {
    "acc": "acc picks the likeliest choice.",
    "acc_mutual_info": "acc mutual info picks the choice whose likelihood the context raises most.",
}


def evaluation(results: Record) -> dict[str, Any]:
    """Returns the score table, with the models side by side.

    Each cell has text and, if the metric is a fraction, the length of a bar in percent.
    """
    table, before = [], ""
    for task, metric, scores in rows(results):
        is_fraction = metric.split(",")[0] in FRACTIONS
        pick = min if metric in LOWER_IS_BETTER else max
        best = pick(score["value"] for score in scores.values())
        guess = next(iter(scores.values()))["chance"]
        texts = {name: format_score(score, metric) for name, score in scores.items()}
        cells = [
            {
                "value": texts[name][0],
                "stderr": texts[name][1],
                "share": f"{100 * scores[name]['value']:.1f}" if is_fraction else None,
                "best": len(scores) > 1 and scores[name]["value"] == best,
            }
            if name in scores
            else None
            for name in results["models"]
        ]
        entry = next(m["tasks"][task] for m in results["models"].values() if task in m["tasks"])
        table.append(
            {
                "task": task if task != before else "",
                "note": f"{entry['samples']:,} samples, {entry['num_fewshot'] or 0} shots",
                "metric": metric.replace("_", " ").replace(",", ", "),
                "lower": metric in LOWER_IS_BETTER,
                "cells": cells,
                "chance": f"{guess:.0%}" if guess is not None else "",
                "chance_share": f"{100 * guess:.1f}" if guess is not None and is_fraction else None,
            }
        )
        before = task
    limits = {model["settings"]["limit"] for model in results["models"].values()} - {None}
    limited = f"Only the first {min(limits)} samples of each task were scored." if limits else ""
    return {
        "models": list(results["models"]),
        "rows": table,
        "notes": [
            note
            for metric, note in METRIC_NOTES.items()
            if any(m == metric for _, m, _ in rows(results))
        ],
        "limited": limited,
        "packages": ", ".join(f"{k} {v}" for k, v in results["packages"].items())
        + computed_in(results),
    }


def suites(results: Record) -> list[dict[str, Any]]:
    """Returns the tables of suites, with published models below ours and numbered sources."""
    tables = []
    for table in suite_tables(results):
        sources = list(dict.fromkeys(row.source for row in table.rows if row.source))
        tables.append(
            {
                "name": table.suite,
                "heads": table.heads,
                "sources": sources,
                "rows": [
                    {
                        "model": row.model,
                        "source": sources.index(row.source) + 1 if row.source else None,
                        "cells": [
                            ("" if score is None else f"{score:.2f}", error and f"{error:.1f}")
                            for score, error in zip(row.scores, row.errors, strict=True)
                        ],
                        "average": "" if row.average is None else f"{row.average:.2f}",
                    }
                    for row in table.rows
                ],
            }
        )
    return tables
