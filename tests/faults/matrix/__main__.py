"""Injects all faults and writes docs/faults.md.

`python -m tests.faults.matrix [--rows 1,4-6] [--share 0.2]`
"""

from __future__ import annotations

import argparse
import math
import re
import sys
import tempfile
import time
import traceback
from pathlib import Path
from statistics import median

from tests.faults.matrix import ROWS, Outcome, Row, data, hangs, kills, numbers, starts, storage
from tests.faults.matrix.lab import Lab

FAMILIES = (kills, storage, data, numbers, hangs, starts)
"""Modules that register their rows when they are imported."""
DOCS = Path("docs/faults.md")


def main() -> None:
    """Runs the requested rows; exits with 1 if an outcome was not right."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", default="", help="numbers and ranges; default: all rows")
    parser.add_argument(
        "--share", type=float, default=1.0, help="fraction of each row's trials, at least one trial"
    )
    parser.add_argument("--out", type=Path, default=DOCS)
    options = parser.parse_args()
    wanted = numbers_of(options.rows) or {row.number for row in ROWS}
    rows = [row for row in ROWS if row.number in wanted]
    found: list[tuple[Row, list[Outcome]]] = []
    with tempfile.TemporaryDirectory() as folder:
        lab = Lab(Path(folder))
        try:
            for row in sorted(rows, key=lambda row: row.number):
                found.append((row, run_row(lab, row, math.ceil(row.trials * options.share))))
        finally:
            lab.close()
    lines = {line_key(line): line for line in kept(options.out, {row.number for row in rows})}
    lines |= {line_key(line): line for line in map(line_of, *zip(*found, strict=True))}
    text = report([lines[key] for key in sorted(lines)])
    options.out.write_text(text)
    print(text)
    bad = [o for _, outcomes in found for o in outcomes if o.wrong and not o.skipped]
    sys.exit(1 if bad else 0)


def numbers_of(text: str) -> set[int]:
    """Parses row numbers: `1,4-6` is {1, 4, 5, 6}."""
    found: set[int] = set()
    for part in filter(None, text.split(",")):
        first, _, last = part.partition("-")
        found |= set(range(int(first), int(last or first) + 1))
    return found


def run_row(lab: Lab, row: Row, trials: int) -> list[Outcome]:
    """Runs the trials of a row one after the other."""
    outcomes = []
    for trial in range(trials):
        began = time.monotonic()
        try:
            outcome = row.trial(lab, trial)
        except Exception:  # a trial that breaks is not a right outcome, and ends no other
            outcome = Outcome(traceback.format_exc(limit=-3))
        outcomes.append(outcome)
        said = outcome.skipped or outcome.wrong or "right"
        print(
            f"{row.number:>2} {row.fault} #{trial}: {said} ({time.monotonic() - began:.1f} s)",
            flush=True,
        )
    return outcomes


def line_of(row: Row, outcomes: list[Outcome]) -> str:
    """Formats the line of the table for a row."""
    ran = [o for o in outcomes if not o.skipped]
    if not ran:
        return (
            f"| {row.number} | {row.fault} | not run: {outcomes[0].skipped} | 0 | 0 | 0 | 0 | | |"
        )
    times = [o.recovery_seconds for o in ran if o.recovery_seconds is not None]
    lost = [o.lost for o in ran if o.lost is not None]
    cells = [
        row.number,
        row.fault,
        row.expected,
        len(ran),
        sum(not o.wrong for o in ran),
        sum(o.wrong_resume for o in ran),
        sum(o.hang for o in ran),
        f"{median(times):.1f}" if times else "",
        max(lost) if lost else "",
    ]
    return f"| {' | '.join(map(str, cells))} |"


def line_key(line: str) -> tuple[int, str]:
    """Returns number and fault of a line of the table."""
    cells = line.split("|")
    return int(cells[1]), cells[2].strip()


def kept(page: Path, again: set[int]) -> list[str]:
    """Returns the lines of the existing table, except for the rows that were run again."""
    if not page.exists():
        return []
    lines = [line for line in page.read_text().splitlines() if re.match(r"\| \d", line)]
    return [line for line in lines if line_key(line)[0] not in again]


def report(lines: list[str]) -> str:
    """Returns the text of docs/faults.md."""
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    trials, right, wrong, hangs_seen = (sum(int(c[at]) for c in cells) for at in (3, 4, 5, 6))
    rows = {c[0] for c in cells if int(c[3])}
    head = [
        "# Which faults does a run survive?",
        "",
        "```",
        "make faults                                      # about 20 minutes",
        "python -m tests.faults.matrix --rows 4,9-12      # repeats some rows",
        "```",
        "",
        "`make faults` injects each of these faults into real processes (gloo, a small model, 12 "
        "steps, a checkpoint every third step) and writes this page. If a run can continue, the "
        "same command is run again, and its weights on disk, tokens and losses are compared with "
        "those of an uninterrupted run, bit for bit.",
        "",
        f"{len(rows)} kinds of fault, {trials} trials: {right} right outcomes, {wrong} wrong "
        f"resumes, {hangs_seen} hangs.",
        "",
        "Seconds to recover are the median time from the second start to its first step, without "
        "imports (the ranks are forked from a process that has made them). Steps lost are the "
        "largest number of steps that had to be repeated.",
        "",
        "| | fault | expected outcome | trials | right | wrong resumes | hangs | s to recover "
        "| steps lost |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    return "\n".join([*head, *lines, ""])


if __name__ == "__main__":
    main()
