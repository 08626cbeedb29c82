"""The minimum of a loss over a learning rate, from a parabola in log2(rate), with its interval."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

NEIGHBORS = 2
"""Number of rates on each side of the best one to which the parabola is fitted."""
CONFIDENCE = 0.9


@dataclass(frozen=True)
class Optimum:
    """The minimum of a parabola.

    Attributes:
        rate: The rate at the minimum.
        loss: The loss of the parabola there.
        error: Standard error of log2(rate), from the distances of the losses to the parabola; None
            if there are only three losses, through which it passes.
        freedom: Number of losses beyond three.
        bounded: False if the losses have no minimum between the lowest and the highest rate. The
            rate is then the one with the lowest loss.
    """

    rate: float
    loss: float
    error: float | None
    freedom: int
    bounded: bool

    @property
    def interval(self) -> tuple[float, float] | None:
        """Returns the interval that contains the rate with a confidence of 90%, if known."""
        if self.error is None:
            return None
        width = float(stats.t.ppf((1 + CONFIDENCE) / 2, self.freedom)) * self.error
        return self.rate * 2**-width, self.rate * 2**width


def optimum(losses: Mapping[float, Sequence[float]]) -> Optimum:
    """Returns the optimum of a rate.

    Args:
        losses: The losses of all seeds by rate. Rates with a loss that is not finite do not count.

    Raises:
        ValueError: there are fewer than three rates with finite losses.
    """
    points = sorted((r, list(x)) for r, x in losses.items() if x and all(map(math.isfinite, x)))
    if len(points) < 3:
        raise ValueError(f"expected three rates with finite losses, but there are {len(points)}")
    means = [sum(found) / len(found) for _, found in points]
    best = means.index(min(means))
    chosen = points[max(0, best - NEIGHBORS) : best + NEIGHBORS + 1]
    center = math.log2(points[best][0])
    x = np.array([math.log2(rate) - center for rate, found in chosen for _ in found])
    y = np.array([loss for _, found in chosen for loss in found])
    design = np.stack([x**2, x, np.ones_like(x)], 1)
    (second, first, constant), *_ = np.linalg.lstsq(design, y, rcond=None)
    vertex = -first / (2 * second) if second > 0 else math.inf
    if best in (0, len(points) - 1) or not x.min() <= vertex <= x.max():
        return Optimum(points[best][0], means[best], None, 0, False)
    freedom = len(x) - 3
    error = None
    if freedom:
        residuals = y - design @ np.array([second, first, constant])
        covariance = float(residuals @ residuals) / freedom * np.linalg.inv(design.T @ design)
        slope = np.array([first / (2 * second**2), -1 / (2 * second), 0.0])
        error = math.sqrt(max(0.0, float(slope @ covariance @ slope)))
    loss = float(constant - first**2 / (4 * second))
    return Optimum(float(2 ** (center + vertex)), loss, error, freedom, True)


def drift(optima: Sequence[Optimum]) -> float:
    """Returns the largest factor between the rates of several optima."""
    rates = [found.rate for found in optima]
    return max(rates) / min(rates)
