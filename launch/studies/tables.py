"""The table of a study's runs, as `table.csv` and `results.json`."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import asdict
from typing import Any

from conf.files import write_text
from launch.studies.results import used_seconds
from launch.studies.study import Study

TABLE = "table.csv"
RESULTS = "results.json"
Row = dict[str, Any]


def rows(study: Study) -> list[Row]:
    """Returns one row per run: its values, its results, and how it ended.

    The rows do not depend on when and how often the runs were interrupted.
    """
    names = list(dict.fromkeys(key for c in study.commands.values() for key in c.run.values))
    found = {result.run.name: result for result in study.results}
    sources = list(dict.fromkeys(key for result in study.results for key in result.sources))
    table = []
    for name, command in study.commands.items():
        row: Row = {"run": name, "role": command.run.role, "trunk": command.run.trunk or ""}
        row |= {key: command.run.values.get(key, "") for key in names}
        result, record = found.get(name), study.records.runs.get(name)
        if result is not None:
            row |= {
                "parameters": result.parameters,
                "non_embedding": result.non_embedding,
                "tokens": result.tokens,
                "flops": result.flops,
                "loss": result.loss,
            }
            for source in sources:
                measured = result.sources.get(source)
                row[f"loss_{source}"] = "" if measured is None else measured.loss
                row[f"bits_per_byte_{source}"] = "" if measured is None else measured.bits_per_byte
        row["code"] = 0 if result is not None else ""
        row["cause"] = "finished" if result is not None else "missing"
        if result is None and record is not None and record.has_failed:
            row |= {"code": record.code, "cause": record.cause}
        table.append(row)
    return table


def write_results(study: Study) -> None:
    """Writes `table.csv` and `results.json` into the study's folder."""
    table = rows(study)
    columns = list(dict.fromkeys(key for row in table for key in row))
    end = ["code", "cause"]
    columns = [key for key in columns if key not in end] + end
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(table)
    write_text(study.folder / TABLE, text.getvalue())
    planned = study.planned()
    used = {name: used_seconds(study.base.run_dir(name)) for name in study.commands}
    results = {result.run.name: result for result in study.results}
    content = {
        name: {
            **asdict(command.run),
            "command": ["python", "-m", "pretrain", *command.overrides],
            "planned": asdict(planned[name]),
            "used_seconds": used[name],
            "result": asdict(results[name]) if name in results else None,
            "failure": asdict(study.records.of(name)) if name in study.failed else None,
        }
        for name, command in study.commands.items()
    }
    write_text(study.folder / RESULTS, json.dumps(content, indent=1))
