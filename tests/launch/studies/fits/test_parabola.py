"""The optimum of a rate: exact for parabolas, and within its interval for noisy losses."""

from __future__ import annotations

import math
import random

import pytest

from launch.studies.fits.parabola import drift, optimum

RATES = [2.0**power for power in range(-9, -3)]


def loss(rate, best=0.011, curvature=0.05):
    return 2.0 + curvature * math.log2(rate / best) ** 2


def test_the_minimum_of_a_parabola_is_exact():
    found = optimum({rate: [loss(rate)] for rate in RATES})
    assert found.bounded
    assert found.rate == pytest.approx(0.011)
    assert found.loss == pytest.approx(2.0)
    assert found.interval == pytest.approx((0.011, 0.011), rel=1e-5)
    assert optimum({rate: [loss(rate)] for rate in (0.004, 0.01, 0.02)}).interval is None


def test_the_interval_contains_the_optimum_nine_times_in_ten():
    chance = random.Random(0)
    inside = 0
    for _ in range(300):
        noisy = {rate: [loss(rate) + chance.gauss(0, 0.01) for _ in range(2)] for rate in RATES}
        found = optimum(noisy)
        assert found.interval is not None
        inside += found.interval[0] <= 0.011 <= found.interval[1]
    assert 0.84 <= inside / 300 <= 0.96


def test_an_optimum_outside_of_the_rates_is_not_bounded():
    low = optimum({rate: [loss(rate, best=1e-4)] for rate in RATES})
    assert (low.bounded, low.rate, low.interval) == (False, RATES[0], None)
    diverged = {rate: [loss(rate) if rate < 0.02 else math.nan] for rate in RATES}
    assert optimum(diverged).rate == pytest.approx(0.011)
    with pytest.raises(ValueError, match="expected three rates"):
        optimum({rate: [math.inf] for rate in RATES})


def test_the_drift_is_the_largest_factor():
    optima = [optimum({r: [loss(r, best=best)] for r in RATES}) for best in (0.01, 0.015, 0.008)]
    assert drift(optima) == pytest.approx(0.015 / 0.008)
