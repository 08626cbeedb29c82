"""Writes the figures of a benchmark: JSON with everything, and a Markdown table."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks.machine import described


def write_results(path: Path, figures: Mapping[str, Any], table: str | None = None) -> None:
    """Writes `figures` to `path` and a table to the same name with `.md`, and prints the table.

    Args:
        path: The JSON file.
        figures: Values by name; nested mappings are allowed.
        table: Markdown; by default one row per figure, without the lists of single runs, below the
            first paragraph of the script's docstring.
    """
    if table is None:
        about = str(sys.modules["__main__"].__doc__).split("\n\n")[0].replace("\n", " ")
        machine = f"{described(figures['machine'])}."
        lines = [f"{about} {machine}", "", "| figure | |", "|---|---|"]
        rest = {key: value for key, value in figures.items() if key != "machine"}
        lines += [f"| {name} | {value} |" for name, value in rows(rest)]
        table = "\n".join([*lines, ""])
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(figures, indent=1) + "\n")
    path.with_suffix(".md").write_text(table)
    print(table)


def rows(figures: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, str]]:
    """Yields names and values; nested values follow the name of their outer one."""
    for key, value in figures.items():
        name = f"{before}{key}".replace("_", " ")
        if isinstance(value, Mapping):
            yield from rows(value, f"{name}: ")
        elif isinstance(value, list):
            for number, one in enumerate(value, 1):
                if isinstance(one, Mapping):
                    yield from rows(one, f"{name} {number}: ")
        elif isinstance(value, float):
            yield name, f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
        else:
            yield name, f"{value:,}" if isinstance(value, int) else str(value)
