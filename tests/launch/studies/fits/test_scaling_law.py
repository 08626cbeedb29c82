"""The law of loss by size and tokens: constants, intervals and forecasts from known ones."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import approx_fprime

from launch.studies.fits.scaling_law import (
    Law,
    Points,
    ScaledFit,
    fit,
    fit_with_intervals,
    forecast_largest,
    points_of,
)

CHINCHILLA = Law(E=1.69, A=406.4, a=0.34, B=410.7, b=0.28)
"""The constants of arXiv 2203.15556."""
TARGET = (6.4e8, 5.12e10)


def ladder(noise: float = 0.0, seed: int = 0, law: Law = CHINCHILLA) -> Points:
    """Returns the losses of 4 sizes x 3 budgets that follow a law up to noise."""
    sizes = np.repeat(2e7 * 2.0 ** np.arange(4), 3)
    tokens = sizes * np.tile([10.0, 20.0, 40.0], 4)
    noises = noise * np.random.default_rng(seed).standard_normal(12)
    return points_of(sizes, tokens, law.loss(sizes, tokens) * np.exp(noises))


def test_the_constants_of_points_without_noise_are_found():
    found = fit(ladder())
    assert found == pytest.approx(CHINCHILLA, rel=1e-4)
    assert found.loss(*TARGET) == pytest.approx(CHINCHILLA.loss(*TARGET), rel=1e-6)


def test_one_run_that_failed_hardly_moves_the_law():
    points = ladder()
    points.losses[4] *= 1.2
    assert fit(points).loss(*TARGET) == pytest.approx(CHINCHILLA.loss(*TARGET), rel=2e-3)


def test_the_gradient_is_that_of_the_objective():
    scaled = ScaledFit(ladder(noise=3e-3))
    x = scaled.constants(Law(1.5, 300.0, 0.3, 500.0, 0.3))
    slopes = approx_fprime(x, scaled.objective, 1e-7)
    assert scaled.with_gradient(x)[1] == pytest.approx(slopes, rel=1e-3)
    assert scaled.law(x) == pytest.approx(Law(1.5, 300.0, 0.3, 500.0, 0.3))


def test_known_constants_are_inside_the_intervals_in_nine_of_ten_draws():
    fits = [fit_with_intervals(ladder(2e-3, seed), draws=60) for seed in range(10)]
    inside = [
        all(found.constants[name].covers(getattr(CHINCHILLA, name)) for name in Law._fields)
        for found in fits
    ]
    truth = CHINCHILLA.loss(*TARGET)
    forecast = [found.forecast(*TARGET).covers(truth) for found in fits]
    assert sum(inside) >= 9
    assert sum(forecast) >= 9
    widths = [found.forecast(*TARGET).high - found.forecast(*TARGET).low for found in fits]
    assert max(widths) < 0.1 * truth  # intervals that say something


def test_noise_between_seeds_widens_the_forecast():
    points = ladder(1e-4)
    narrow = fit_with_intervals(points, draws=40).forecast(*TARGET)
    wide = fit_with_intervals(points, draws=40, seed_noise=5e-3).forecast(*TARGET)
    assert wide.high - wide.low > 5 * (narrow.high - narrow.low)


def test_the_best_size_is_that_of_the_formula():
    budget = 1e21
    law = CHINCHILLA
    factor = (law.a * law.A / (law.b * law.B)) ** (1 / (law.a + law.b))
    expected = factor * (budget / 6) ** (law.b / (law.a + law.b))
    assert law.best_size(budget, lambda size: 6 * size) == pytest.approx(expected, rel=1e-3)


def test_more_tokens_give_what_the_law_says():
    gain = CHINCHILLA.gain_of_doubling(1e9, 2e10)
    assert gain == pytest.approx(410.7 * (2e10**-0.28 - 4e10**-0.28))


def test_smaller_sizes_forecast_the_largest():
    backtest = forecast_largest(ladder(1e-4), draws=40)
    assert backtest is not None
    assert set(backtest.points.parameters) == {1.6e8}
    assert max(map(abs, backtest.errors)) < 2e-3
    sizes = ladder()
    assert forecast_largest(sizes.where(sizes.parameters > 3e7)) is None


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        ([(1e6, 1e7, 3.0)] * 5, "5 runs"),
        ([(size, 1e7, 3.0) for size in (1e6, 2e6)] * 3, "2 sizes"),
        ([(size, 1e7, 3.0) for size in (1e6, 2e6, 4e6)] * 2, "1 numbers of tokens"),
        ([(1e6, 1e7, float("nan"))] * 6, "not positive"),
    ],
)
def test_too_few_points_are_refused(rows, reason):
    with pytest.raises(ValueError, match=reason):
        points_of(*zip(*rows, strict=True))
