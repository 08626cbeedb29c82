"""The runs that a run descends from, and which of them trained a step (I17).

A run with parents lists them in its `env.json`, the nearest first, with the step at which it left
each of them. A step up to that of a parent was trained by the parent or by one of its parents.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

LEDGER = "ledger.jsonl"


class Lineage:
    """The chain of a run and its parents.

    Args:
        run: The run folder.
        env: Content of its `env.json`.
    """

    def __init__(self, run: Path, env: Mapping[str, Any]) -> None:
        self.run = run
        self.parents: list[dict[str, Any]] = env.get("parents", [])

    @property
    def fork(self) -> int:
        """Number of steps that the run has from its parents."""
        return int(self.parents[0]["step"]) if self.parents else 0

    def trainer_of(self, step: int) -> str:
        """Returns the run that trained a step, counted from 1."""
        level = 0
        while level < len(self.parents) and step <= self.parents[level]["step"]:
            level += 1
        return str(self.parents[level - 1]["run"] if level else self.run)

    def ledger(self) -> Iterator[dict[str, Any]]:
        """Yields the lines of the ledgers of the chain, as far as they can be read, by step."""
        runs = [Path(parent["run"]) for parent in reversed(self.parents)] + [self.run]
        after = 0
        ends = [int(parent["step"]) for parent in reversed(self.parents)] + [None]
        for run, end in zip(runs, ends, strict=True):
            if (run / LEDGER).is_file():
                with (run / LEDGER).open() as lines:
                    for line in map(json.loads, lines):
                        if after < line["step"] <= (end or line["step"]):
                            yield line
            after = end or after
