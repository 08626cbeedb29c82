"""When the next checkpoint is due."""

from __future__ import annotations

import math

LOOKS = 2
"""How often, in the time that is left, the clock is read again: step times change."""
FIRST_LOOK_STEPS = 10


def best_interval(cost_seconds: float, mttf_seconds: float) -> float:
    """Seconds between checkpoints that lose the least: sqrt(2 C M) of Young (CACM 17(9), 1974)
    with the next terms of Daly (FGCS 22(3), 2006), within 1% of the optimum for C < M / 2.

    cost_seconds: C, what a save holds the training up; mttf_seconds: M, mean time to failure of the
    whole job.
    """
    cost, mttf = cost_seconds, mttf_seconds
    if cost >= 2 * mttf:
        return mttf
    ratio = cost / (2 * mttf)
    return math.sqrt(2 * cost * mttf) * (1 + math.sqrt(ratio) / 3 + ratio / 9) - cost


class Clock:
    """Answers on rank 0, for all, whether a span of time has passed, at steps that it names ahead:
    nobody has to talk at the others."""

    def __init__(self, step: int, now: float) -> None:
        self.saved_at = now
        self.look_at = step + FIRST_LOOK_STEPS
        self._seen_at, self._seen_step = now, step

    def is_due(self, step: int, now: float, seconds: float) -> bool:
        """Whether `seconds` have passed since the last save; says in `look_at` when to ask next."""
        pace = (now - self._seen_at) / max(1, step - self._seen_step)
        self._seen_at, self._seen_step = now, step
        left = self.saved_at + seconds - now
        due = left <= pace / 2
        steps = (seconds if due else left) / max(pace, 1e-6)
        self.look_at = step + max(1, int(steps / LOOKS))
        return due

    def saved(self, now: float) -> None:
        """A save began: the span counts from now."""
        self.saved_at = now
