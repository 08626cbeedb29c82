"""When the next checkpoint is due."""

from __future__ import annotations

import math

LOOKS = 2
"""How often, in the time that is left, the clock is read again: step times change."""
FIRST_AUTO_STEPS = 10


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

    def __init__(self, step: int, now: float, first_look: int) -> None:
        self.saved_at, self.saved_step = now, step
        self.look_at = step + first_look
        self._seen_at, self._seen_step = now, step

    def is_due(self, step: int, now: float, seconds: float) -> bool:
        """Whether `seconds` have passed since the last save; sets `look_at` where not."""
        pace = (now - self._seen_at) / max(1, step - self._seen_step)
        self._seen_at, self._seen_step = now, step
        left = self.saved_at + seconds - now
        if left <= pace / 2:
            return True
        self.look_at = step + max(1, int(left / max(pace, 1e-6) / LOOKS))
        return False

    def saved(self, step: int, now: float) -> None:
        """A save began: the span counts from now."""
        pace_steps = max(1, (step - self.saved_step) // LOOKS)
        self.saved_at, self.saved_step = now, step
        self.look_at = step + pace_steps
