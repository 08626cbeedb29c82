"""Makes the table of docs/handover.md: families x tools x what they compute.

    python -m benchmarks.handover [--older PYTHON] [--vllm PYTHON] [--columns vLLM] [--families ...]

`--older` is the Python of an environment with transformers 4.57, `--vllm` that of one with vLLM
(`make test-serving` makes .venv-serving). llama.cpp is asked if this environment has it. Columns
and families that are not measured keep their earlier cells.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.handover.cases import ASPECTS, make_case
from benchmarks.handover.columns import NotHereError, columns
from benchmarks.handover.compare import cells
from benchmarks.machine import described, machine
from conf.terminal import silence_torchao
from model.families import FAMILIES

ROOT = Path(__file__).parents[2]
RESULTS, PAGE = ROOT / "benchmarks/results/handover.json", ROOT / "docs/handover.md"
BEGIN, END = "<!-- made by benchmarks.handover -->\n", "<!-- end -->\n"
NOT_HERE = "not measured here"


def main() -> None:
    """Measures what is asked for, and writes the figures and the table."""
    options = parse()
    silence_torchao()
    figures: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    known, versions = figures.get("cells", {}), figures.get("versions", {})
    with tempfile.TemporaryDirectory() as name:
        cases = [make_case(family, Path(name) / family) for family in options.families]
        for column, ask in columns(options).items():
            if options.columns and column not in options.columns:
                continue
            try:
                versions[column], found = ask(cases)
            except NotHereError as reason:
                print(f"{column}: {NOT_HERE} ({reason})", flush=True)
                continue
            for case in cases:
                known.setdefault(case.family, {})[column] = cells(case, found[case.family])
            print(f"{column} {versions[column]}: {len(cases)} families", flush=True)
            figures = {"machine": machine(), "versions": versions, "cells": known}
            RESULTS.write_text(json.dumps(figures, indent=1) + "\n")
    before, rest = PAGE.read_text().split(BEGIN)
    after = rest.split(END)[1]
    PAGE.write_text(f"{before}{BEGIN}\n{table(figures)}\n{END}{after}")


def parse() -> argparse.Namespace:
    """Returns the options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--older", help="Python with transformers 4.57")
    parser.add_argument("--vllm", help="Python with vLLM")
    parser.add_argument("--families", nargs="+", choices=FAMILIES, default=list(FAMILIES))
    parser.add_argument("--columns", nargs="+", help="names of columns; all without it")
    return parser.parse_args()


def table(figures: dict[str, Any]) -> str:
    """Returns one table per aspect, with a row per family and a column per tool."""
    versions, measured = figures["versions"], figures["cells"]
    tools = [*versions, *({"llama.cpp", "vLLM", "transformers 4"} - set(versions))]
    text = [f"{described(figures['machine'])}.", ""]
    reasons: list[str] = []
    for aspect in ASPECTS:
        names = [f"{tool} ({versions[tool]})" if tool in versions else tool for tool in tools]
        text += [f"**{aspect[0].upper()}{aspect[1:]}**", "", f"| | {' | '.join(names)} |"]
        text += ["|---" * (len(tools) + 1) + "|"]
        for family in FAMILIES:
            row = [measured.get(family, {}).get(tool, {}).get(aspect, NOT_HERE) for tool in tools]
            text.append(f"| `{family}` | {' | '.join(short(cell, reasons) for cell in row)} |")
        text.append("")
    notes = [f"{number}. {reason}" for number, reason in enumerate(reasons, 1)]
    return "\n".join([*text, *(["Cannot, because:", "", *notes, ""] if notes else [])])


def short(cell: str, reasons: list[str]) -> str:
    """Returns a cell with the number of its reason, which is added to the list."""
    if not cell.startswith("cannot: "):
        return cell
    reason = cell.removeprefix("cannot: ")
    if reason not in reasons:
        reasons.append(reason)
    return f"cannot ({reasons.index(reason) + 1})"


if __name__ == "__main__":
    main()
