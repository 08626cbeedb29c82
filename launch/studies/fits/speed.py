"""Durations of runs, from those of finished runs of the same study."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.optimize import lsq_linear


class Duration(NamedTuple):
    """The duration of a finished run.

    Attributes:
        steps: Number of steps.
        planned: Seconds that its FLOPs take at the typical speed of the cluster.
        used: Seconds that it took.
    """

    steps: int
    planned: float
    used: float


class Speed(NamedTuple):
    """A duration that grows with the steps and with the FLOPs of a run.

    The steps of tiny models take as long as their calls, not as their FLOPs. A factor on FLOPs
    alone would plan a large run with the slowness of the tiny ones.

    Attributes:
        fixed: Seconds per run, for its validations, saves and start.
        per_step: Seconds per step that do not depend on the model.
        slowness: Time per FLOP, relative to the typical speed of the cluster.
    """

    fixed: float = 5.0
    per_step: float = 0.01
    slowness: float = 1.0

    def seconds(self, steps: int, planned: float) -> float:
        """Returns the duration of a run, whose FLOPs take `planned` seconds at typical speed."""
        return self.fixed + self.per_step * steps + self.slowness * planned


ASSUMED = Speed()
"""The speed before the first run has finished."""
WEIGHT = 0.01
"""Weight of the assumed speed next to a finished run; it decides what runs do not tell apart."""
LEAST_SLOWNESS = 0.5
"""Tiny runs do not show how long FLOPs take, but a cluster is not much faster than typical."""


def speed_of(finished: Sequence[Duration]) -> Speed:
    """Returns the speed with the smallest relative errors for finished runs."""
    known = [run for run in finished if run.used > 0]
    rows = [[1 / run.used, run.steps / run.used, run.planned / run.used] for run in known]
    assumed = WEIGHT * np.diag(1 / np.array(ASSUMED))
    matrix = np.concatenate([np.array(rows).reshape(-1, len(ASSUMED)), assumed])
    wanted = np.concatenate([np.ones(len(known)), np.full(len(ASSUMED), WEIGHT)])
    scale = np.array(ASSUMED)
    found = lsq_linear(matrix * scale, wanted, bounds=([0.0, 0.0, LEAST_SLOWNESS], np.inf)).x
    return Speed(*map(float, found * scale))
