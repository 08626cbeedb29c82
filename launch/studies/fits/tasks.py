"""Forecasts scores of tasks in two steps: the loss from size and tokens, the score from the loss.

The second step is the sigmoid of OLMo's ladder (arXiv 2412.04403):

    score(loss) = bottom + height / (1 + exp(steepness * (loss - center)))

A task whose scores do not rise yet over the runs has no forecast, because then any center below the
lowest loss fits as well as any other.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.optimize import least_squares

from launch.studies.fits.scaling_law import Fit, Interval, interval_of

CONSTANTS = 4
LEAST_RISE = 3.0
"""Rise of a score over the runs, in standard deviations of its noise, from which it is forecast."""


class Sigmoid(NamedTuple):
    """The constants of a score that falls with the loss from bottom + height to bottom."""

    bottom: float
    height: float
    steepness: float
    center: float

    def score(self, loss: np.ndarray | float) -> np.ndarray:
        """Returns the score at a loss."""
        exponent = np.clip(self.steepness * (np.asarray(loss) - self.center), -60, 60)
        return np.asarray(self.bottom + self.height / (1 + np.exp(exponent)))


@dataclass(frozen=True)
class ScoreFit:
    """Scores of a task as a function of the loss, with its uncertainty.

    Attributes:
        losses: Held-out losses of the runs.
        scores: Scores of the runs, from 0 to 1.
        sigmoid: The constants with the least squares.
        draws: Constants fitted to scores that were drawn around `sigmoid`.
        noise: Standard deviation of a score around the sigmoid.
    """

    losses: np.ndarray
    scores: np.ndarray
    sigmoid: Sigmoid
    draws: tuple[Sigmoid, ...]
    noise: float

    @property
    def rises(self) -> bool:
        """True if the scores differ by more than their noise explains."""
        ends = self.sigmoid.score(np.array([self.losses.min(), self.losses.max()]))
        return bool(ends[0] - ends[1] > LEAST_RISE * self.noise)

    def forecast(self, law: Fit, parameters: float, tokens: float) -> Interval:
        """Returns the score of one further run, with the uncertainty of both steps.

        The longer side of the interval is taken for both sides: few runs leave the height of the
        sigmoid open in one direction, and which one it is depends on their noise.
        """
        losses = law.forecast_draws(parameters, tokens)
        random = np.random.default_rng(law.seed + 1)
        chosen = random.integers(len(self.draws), size=len(losses))
        drawn = np.array(
            [self.draws[i].score(loss) for i, loss in zip(chosen, losses, strict=True)]
        )
        noisy = np.clip(drawn + self.noise * random.standard_normal(len(drawn)), 0, 1)
        value, low, high = interval_of(
            float(self.sigmoid.score(law.law.loss(parameters, tokens))), noisy
        )
        side = max(high - value, value - low)
        return Interval(value, max(0.0, value - side), min(1.0, value + side))


def fit_scores(
    losses: np.ndarray,
    scores: np.ndarray,
    *,
    sample_noise: float = 0.0,
    draws: int = 100,
    seed: int = 0,
) -> ScoreFit:
    """Fits the sigmoid, and fits it again to scores drawn around it.

    Args:
        losses: Held-out losses of the runs.
        scores: Scores of the runs, from 0 to 1.
        sample_noise: Standard error of a score, which the number of questions gives.
        draws: Number of draws.
        seed: Seed of the random numbers.

    Raises:
        ValueError: There are too few runs.
    """
    losses, scores = np.asarray(losses, float), np.asarray(scores, float)
    freedom = len(losses) - CONSTANTS
    if freedom < 2:
        raise ValueError(f"{len(losses)} runs have scores, and the sigmoid needs {CONSTANTS + 2}")
    sigmoid = _best(losses, scores)
    residuals = scores - sigmoid.score(losses)
    noise = max(sample_noise, float(np.sqrt(np.sum(residuals**2) / freedom)))
    random = np.random.default_rng(seed)
    # Few runs know their noise badly, so that it is drawn too.
    scales = noise * np.sqrt(freedom / random.chisquare(freedom, (draws, 1)))
    drawn = sigmoid.score(losses) + scales * random.standard_normal((draws, len(losses)))
    found = [_descend(losses, row, sigmoid) for row in drawn]
    return ScoreFit(losses, scores, sigmoid, tuple(found), noise)


def _best(losses: np.ndarray, scores: np.ndarray) -> Sigmoid:
    """Returns the sigmoid with the least squares over a grid of starts."""
    spread = max(float(np.ptp(losses)), 1e-6)
    bottom = float(np.clip(scores.min(), 0, 0.99))
    centers = losses.min() + spread * np.array([-1, 0, 0.5, 1])
    grid = itertools.product((0.3, 1.0), (1, 4, 12), centers)
    found = [
        _descend(losses, scores, Sigmoid(bottom, part * (1 - bottom), k / spread, float(center)))
        for part, k, center in grid
    ]
    return min(found, key=lambda sigmoid: float(np.sum((scores - sigmoid.score(losses)) ** 2)))


def _descend(losses: np.ndarray, scores: np.ndarray, start: Sigmoid) -> Sigmoid:
    spread = max(float(np.ptp(losses)), 1e-6)
    lowest = (0.0, 0.0, 0.05 / spread, 0.0)
    highest = (1.0, 1.0, 100 / spread, float(losses.max()) + spread)
    found = least_squares(
        lambda x: Sigmoid(*x).score(losses) - scores,
        np.clip(start, np.add(lowest, 1e-9), np.subtract(highest, 1e-9)),
        bounds=(lowest, highest),
        x_scale=(0.1, 0.1, 1 / spread, spread),
    )
    return Sigmoid(*(float(value) for value in found.x))
