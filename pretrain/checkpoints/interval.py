"""Decides when the next checkpoint is due."""

from __future__ import annotations

import math

LOOKS = 2
"""Number of times to read the clock before the next save is due, because step times change."""
FIRST_LOOK_STEPS = 10


def best_interval(cost_seconds: float, mttf_seconds: float) -> float:
    """Returns the interval between checkpoints that loses the least time, in seconds.

    The formula is sqrt(2 C M) of Young (CACM 17(9), 1974) with the next terms of Daly (FGCS 22(3),
    2006), which is within 1% of the optimum for C < M / 2.

    cost_seconds: C, how long a save blocks training.
    mttf_seconds: M, mean time to failure of the whole job.
    """
    cost, mttf = cost_seconds, mttf_seconds
    if cost >= 2 * mttf:
        return mttf
    ratio = cost / (2 * mttf)
    return math.sqrt(2 * cost * mttf) * (1 + math.sqrt(ratio) / 3 + ratio / 9) - cost


class Clock:
    """Decides on rank 0, for all ranks, whether enough time has passed since the last save.

    `look_at` is the step at which to call `is_due` next, so that ranks communicate at few steps.
    """

    def __init__(self, step: int, now: float) -> None:
        self.saved_at = now
        self.look_at = step + FIRST_LOOK_STEPS
        self._seen_at, self._seen_step = now, step

    def is_due(self, step: int, now: float, seconds: float) -> bool:
        """Returns whether `seconds` have passed since the last save, and updates `look_at`."""
        step_seconds = (now - self._seen_at) / max(1, step - self._seen_step)
        self._seen_at, self._seen_step = now, step
        left = self.saved_at + seconds - now
        due = left <= step_seconds / 2
        steps = (seconds if due else left) / max(step_seconds, 1e-6)
        self.look_at = step + max(1, int(steps / LOOKS))
        return due

    def saved(self, now: float) -> None:
        """Restarts the clock after a save."""
        self.saved_at = now
