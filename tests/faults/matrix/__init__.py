"""The matrix of faults: each row is a fault that is injected into real processes, many times.

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
    """The outcome of one trial.

    Attributes:
        wrong: What was not as expected; empty if everything was.
        wrong_resume: True if a resumed run ended well with other weights, tokens or losses than an
            uninterrupted one.
        hang: True if a process had to be ended from outside.
        recovery_seconds: Time from the second start to its first step, without imports.
        lost: Number of steps that were repeated.
        skipped: Reason why the fault cannot be injected on this machine.
    """

    wrong: str = ""
    wrong_resume: bool = False
    hang: bool = False
    recovery_seconds: float | None = None
    lost: int | None = None
    skipped: str = ""


@dataclass(frozen=True)
class Row:
    """A row of the matrix.

    Attributes:
        trial: Maps the laboratory and the number of a trial (from 0) to its outcome.
    """

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
