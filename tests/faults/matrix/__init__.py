"""The matrix of faults: each row is a fault that is really injected into real processes, many
times, with what must come of it.

`python -m tests.faults.matrix` (`make faults`) runs all rows and writes docs/faults.md.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.faults.matrix.lab import Lab


@dataclass
class Outcome:
    """Of one trial. wrong: what was not as it must be, empty where all was.

    wrong_resume: a resumed run ended well with other weights, tokens or losses than an
        uninterrupted one. hang: something had to be ended from outside.
    recovery_seconds: from the second start to its first step, imports left out. lost: steps that
        were done twice.
    skipped: why the fault cannot be made here.
    """

    wrong: str = ""
    wrong_resume: bool = False
    hang: bool = False
    recovery_seconds: float | None = None
    lost: int | None = None
    skipped: str = ""


@dataclass(frozen=True)
class Row:
    """trial: (laboratory, number of the trial from 0 on) -> what came of it."""

    number: int
    fault: str
    expected: str
    trials: int
    trial: Callable[[Lab, int], Outcome]


ROWS: list[Row] = []


def row(
    number: int, fault: str, expected: str, trials: int = 1
) -> Callable[[Callable[[Lab, int], Outcome]], Callable[[Lab, int], Outcome]]:
    """Adds a row whose trials are calls of the function."""

    def add(trial: Callable[[Lab, int], Outcome]) -> Callable[[Lab, int], Outcome]:
        ROWS.append(Row(number, fault, expected, trials, trial))
        return trial

    return add
