"""Fits L(N, D) = E + A / N^a + B / D^b to the losses of small runs, and forecasts larger ones.

This is the third approach of Chinchilla (arXiv 2203.15556): a Huber loss on the residuals of log L,
minimized by L-BFGS from a grid of starts. It follows the corrections of arXiv 2404.10102: the
objective is the sum over the points instead of the mean, and the tolerances are far below it, so
that the optimizer does not end early. In addition:

- For given exponents, A and B enter the loss linearly, so that the grid covers only E, a and b, and
  A and B of each start are solved for.
- N and D are divided by their geometric means, which makes A and a nearly independent of each other
  in the fit.

Intervals come from a parametric bootstrap: losses are drawn around the fitted law with the noise
of the residuals, whose estimate counts the five constants of the law as used up and is drawn too,
so that few points give wide intervals.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from scipy.optimize import minimize, minimize_scalar

HUBER_DELTA = 1e-3
"""Residual of log L up to which the Huber loss is quadratic (arXiv 2203.15556, section D.3)."""
CONSTANTS = 5
STARTS = 12
EXPONENT_GRID = np.geomspace(0.05, 1.6, 12)
FLOOR_GRID = np.linspace(0, 0.95, 8)
"""Starts of E as parts of the lowest loss."""
EXPONENT_BOUNDS = (0.01, 4.0)
LEVEL = 0.9
"""Probability that an interval covers the value."""


class Law(NamedTuple):
    """The constants of L(N, D) = E + A / N^a + B / D^b."""

    E: float
    A: float
    a: float
    B: float
    b: float

    def loss(self, parameters: Any, tokens: Any) -> Any:
        """Returns the loss after training on `tokens`; both arguments may be arrays."""
        return self.E + self.A * parameters**-self.a + self.B * tokens**-self.b

    def best_size(
        self,
        flops: float,
        flops_per_token: Callable[[float], float],
        smallest: float = 1e3,
        largest: float = 1e14,
    ) -> float:
        """Returns the number of parameters with the lowest loss for a budget of FLOPs.

        Args:
            flops: The budget.
            flops_per_token: Training FLOPs per token by number of parameters.
            smallest: Least number of parameters.
            largest: Largest number of parameters.
        """

        def loss(log_size: float) -> float:
            size = float(np.exp(log_size))
            return float(self.loss(size, flops / flops_per_token(size)))

        # The loss has one minimum in log N if FLOPs per token grow as a power of N.
        grid = np.linspace(np.log(smallest), np.log(largest), 100)
        best = int(np.argmin([loss(x) for x in grid]))
        bounds = (grid[max(0, best - 1)], grid[min(len(grid) - 1, best + 1)])
        return float(np.exp(minimize_scalar(loss, bounds=bounds, method="bounded").x))

    def gain_of_doubling(self, parameters: float, tokens: float) -> float:
        """Returns by how much the loss falls when the same model sees twice the tokens."""
        return float(self.loss(parameters, tokens) - self.loss(parameters, 2 * tokens))


class Points(NamedTuple):
    """Losses of runs, as three arrays of equal length."""

    parameters: np.ndarray
    tokens: np.ndarray
    losses: np.ndarray

    def where(self, chosen: np.ndarray) -> Points:
        """Returns the points for which `chosen` is true."""
        return Points(*(array[chosen] for array in self))


class Interval(NamedTuple):
    """A value with the interval that covers the true one with probability `LEVEL`."""

    value: float
    low: float
    high: float

    def covers(self, value: float) -> bool:
        """Returns whether a value is in the interval."""
        return self.low <= value <= self.high


def points_of(parameters: Any, tokens: Any, losses: Any) -> Points:
    """Returns points from sequences of numbers.

    Raises:
        ValueError: A number is not positive, or there are too few points, sizes or budgets.
    """
    points = Points(*(np.asarray(array, dtype=float) for array in (parameters, tokens, losses)))
    if not all(np.all(np.isfinite(array) & (array > 0)) for array in points):
        raise ValueError("a number of parameters, number of tokens or loss is not positive")
    if missing := too_few(points):
        raise ValueError(missing)
    return points


def too_few(points: Points) -> str | None:
    """Returns what a fit still lacks, or None."""
    for name, found, least in (
        ("runs", len(points.losses), CONSTANTS + 1),
        ("sizes", len(set(points.parameters)), 3),
        ("numbers of tokens", len(set(points.tokens)), 3),
    ):
        if found < least:
            return f"{found} {name}, and the law needs {least}"
    return None


def fit(points: Points, starts: list[Law] | None = None) -> Law:
    """Returns the law with the lowest Huber loss over all starts.

    Args:
        points: The losses of runs.
        starts: Laws to start from; None for the best of the grid.
    """
    scaled = ScaledFit(points)
    chosen = scaled.grid_starts() if starts is None else [scaled.constants(law) for law in starts]
    found = [scaled.descend(start) for start in chosen]
    return scaled.law(min(found, key=scaled.objective))


@dataclass(frozen=True)
class Fit:
    """A fitted law with its uncertainty.

    Attributes:
        points: The losses that the law was fitted to.
        law: The constants with the lowest Huber loss.
        draws: Laws fitted to losses that were drawn around `law`.
        scales: Noise of each draw, the standard deviation of log L.
        noise: Standard deviation of log L around the law.
        seed: Seed of the random numbers.
    """

    points: Points
    law: Law
    draws: tuple[Law, ...]
    scales: np.ndarray
    noise: float
    seed: int

    @property
    def residuals(self) -> np.ndarray:
        """Logarithms of the losses divided by those of the law."""
        return _residuals(self.points, self.law)

    def interval(self, value: Callable[[Law], float]) -> Interval:
        """Returns a value that depends on the constants, with its interval."""
        return interval_of(value(self.law), np.array([value(law) for law in self.draws]))

    @cached_property
    def constants(self) -> dict[str, Interval]:
        """The constants with intervals that cover all five together with probability `LEVEL`."""
        drawn = np.array(self.draws)
        ranks = (np.argsort(np.argsort(drawn, axis=0), axis=0) + 0.5) / len(drawn)
        # The level of each interval at which `LEVEL` of the draws are inside all of them.
        level = float(np.quantile(np.abs(2 * ranks - 1).max(axis=1), LEVEL))
        ends = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2], axis=0)
        columns = zip(Law._fields, self.law, *ends, strict=True)
        return {name: Interval(*map(float, row)) for name, *row in columns}

    def forecast(self, parameters: float, tokens: float) -> Interval:
        """Returns the loss of one further run, with an interval that includes its own noise."""
        return interval_of(
            self.law.loss(parameters, tokens), self.forecast_draws(parameters, tokens)
        )

    def forecast_draws(self, parameters: float, tokens: float) -> np.ndarray:
        """Returns losses that one further run may have, one per draw."""
        noise = np.random.default_rng(self.seed).standard_normal(len(self.draws)) * self.scales
        losses = np.array([law.loss(parameters, tokens) for law in self.draws])
        return np.asarray(losses * np.exp(noise))


def fit_with_intervals(
    points: Points, *, seed_noise: float = 0.0, draws: int = 200, seed: int = 0
) -> Fit:
    """Fits the law, and fits it again to losses drawn around it.

    Args:
        points: The losses of runs.
        seed_noise: Standard deviation of log L between seeds, if it was measured. The residuals
            cannot show all of it if the runs of one size share a trunk.
        draws: Number of draws.
        seed: Seed of the random numbers.
    """
    law = fit(points)
    freedom = len(points.losses) - CONSTANTS
    noise = max(seed_noise, float(np.sqrt(np.sum(_residuals(points, law) ** 2) / freedom)))
    random = np.random.default_rng(seed)
    scales = noise * np.sqrt(freedom / random.chisquare(freedom, draws))
    expected = law.loss(points.parameters, points.tokens)
    found = []
    for scale in scales:
        losses = expected * np.exp(scale * random.standard_normal(len(expected)))
        found.append(fit(points._replace(losses=losses), [law]))
    return Fit(points, law, tuple(found), scales, noise, seed)


def forecast_largest(points: Points, *, draws: int = 200, seed: int = 0) -> Backtest | None:
    """Returns how well the smaller sizes forecast the largest one, or None if they are too few."""
    largest = points.parameters == points.parameters.max()
    smaller = points.where(~largest)
    if too_few(smaller):
        return None
    found = fit_with_intervals(smaller, draws=draws, seed=seed)
    held_back = points.where(largest)
    forecasts = [found.forecast(n, d) for n, d, _ in zip(*held_back, strict=True)]
    return Backtest(held_back, forecasts)


@dataclass(frozen=True)
class Backtest:
    """Forecasts of runs that have finished, from a fit without them."""

    points: Points
    forecasts: list[Interval]

    @property
    def errors(self) -> list[float]:
        """Relative errors of the forecasts; positive if the forecast was too high."""
        pairs = zip(self.forecasts, self.points.losses, strict=True)
        return [forecast.value / float(loss) - 1 for forecast, loss in pairs]

    @property
    def covered(self) -> int:
        """Number of losses inside their intervals."""
        pairs = zip(self.forecasts, self.points.losses, strict=True)
        return sum(forecast.covers(float(loss)) for forecast, loss in pairs)


def _residuals(points: Points, law: Law) -> np.ndarray:
    return np.asarray(np.log(points.losses / law.loss(points.parameters, points.tokens)))


def interval_of(value: float, drawn: np.ndarray) -> Interval:
    """Returns a value with the interval between the quantiles of its draws."""
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(value), float(low), float(high))


class ScaledFit:
    """The fit of one set of points in constants that the optimizer handles well.

    The constants are E, log A', a, log B' and b, with A' and B' of N and D divided by their
    geometric means, and losses divided by the lowest loss.
    """

    def __init__(self, points: Points) -> None:
        self.center_n, self.center_d = (np.log(array).mean() for array in points[:2])
        self.n = np.log(points.parameters) - self.center_n
        self.d = np.log(points.tokens) - self.center_d
        self.unit = points.losses.min()
        self.losses = points.losses / self.unit
        self.log_losses = np.log(self.losses)

    def objective(self, x: np.ndarray) -> float:
        """Returns the sum of Huber losses in units of delta^2 / 2."""
        return self.with_gradient(x)[0]

    def with_gradient(self, x: np.ndarray) -> tuple[float, np.ndarray]:
        """Returns the objective and its gradient."""
        sizes = np.exp(x[1] - x[2] * self.n)
        data = np.exp(x[3] - x[4] * self.d)
        loss = x[0] + sizes + data
        z = (np.log(loss) - self.log_losses) / HUBER_DELTA
        slope = np.clip(z, -1, 1)
        value = float(np.sum(slope * (2 * z - slope)))
        to_loss = 2 * slope / (HUBER_DELTA * loss)
        to_sizes, to_data = to_loss * sizes, to_loss * data
        gradient = [
            *(to_loss.sum(), to_sizes.sum(), -(to_sizes * self.n).sum()),
            *(to_data.sum(), -(to_data * self.d).sum()),
        ]
        return value, np.array(gradient)

    def grid_starts(self) -> list[np.ndarray]:
        """Returns the best starts of the grid, each with A and B of relative least squares."""
        grid = itertools.product(FLOOR_GRID, EXPONENT_GRID, EXPONENT_GRID)
        rated = []
        for floor, a, b in grid:
            columns = np.stack([np.exp(-a * self.n), np.exp(-b * self.d)], 1)
            solved, *_ = np.linalg.lstsq(
                columns / self.losses[:, None], (self.losses - floor) / self.losses, rcond=None
            )
            scales = np.maximum(solved, 1e-6)
            x = np.array([floor, np.log(scales[0]), a, np.log(scales[1]), b])
            rated.append((self.objective(x), x))
        rated.sort(key=lambda pair: pair[0])
        return [x for _, x in rated[:STARTS]]

    def descend(self, start: np.ndarray) -> np.ndarray:
        """Returns the constants of the minimum that a start leads to."""
        bounds = [(0, 1), (-30, 10), EXPONENT_BOUNDS, (-30, 10), EXPONENT_BOUNDS]
        options = {"maxiter": 2000, "maxfun": 4000, "ftol": 1e-12, "gtol": 1e-8, "maxcor": 20}
        found = minimize(
            *(self.with_gradient, start),
            jac=True,
            method="L-BFGS-B",
            bounds=bounds,
            options=options,
        )
        return np.asarray(found.x)

    def law(self, x: np.ndarray) -> Law:
        """Returns the law of these constants."""
        log_unit = np.log(self.unit)
        return Law(
            E=float(x[0] * self.unit),
            A=float(np.exp(x[1] + x[2] * self.center_n + log_unit)),
            a=float(x[2]),
            B=float(np.exp(x[3] + x[4] * self.center_d + log_unit)),
            b=float(x[4]),
        )

    def constants(self, law: Law) -> np.ndarray:
        """Returns the constants of a law; the inverse of `law`."""
        log_unit = np.log(self.unit)
        return np.array(
            [
                law.E / self.unit,
                np.log(law.A) - law.a * self.center_n - log_unit,
                law.a,
                np.log(law.B) - law.b * self.center_d - log_unit,
                law.b,
            ]
        )
