"""Scores of tasks: the sigmoid of known constants, and forecasts through the loss."""

from __future__ import annotations

import numpy as np
import pytest

from launch.studies.fits.scaling_law import fit_with_intervals
from launch.studies.fits.tasks import Sigmoid, fit_scores
from tests.launch.studies.fits.test_scaling_law import CHINCHILLA, TARGET, ladder

TRUE = Sigmoid(bottom=0.25, height=0.6, steepness=6.0, center=3.2)


def test_the_score_of_a_larger_run_is_forecast():
    points = ladder(5e-4)
    random = np.random.default_rng(0)
    scores = TRUE.score(points.losses) + 0.004 * random.standard_normal(12)
    found = fit_scores(points.losses, scores, draws=40)
    assert found.rises
    law = fit_with_intervals(points, draws=40)
    forecast = found.forecast(law, *TARGET)
    truth = float(TRUE.score(CHINCHILLA.loss(*TARGET)))
    assert forecast.covers(truth)
    assert forecast.value == pytest.approx(truth, abs=0.08)
    assert 0.01 < forecast.high - forecast.low < 0.4


def test_a_score_at_chance_does_not_rise():
    losses = ladder().losses
    scores = 0.25 + 0.01 * np.random.default_rng(1).standard_normal(len(losses))
    assert not fit_scores(losses, scores, sample_noise=0.01, draws=10).rises


def test_few_runs_are_refused():
    with pytest.raises(ValueError, match="5 runs have scores"):
        fit_scores(np.ones(5), np.ones(5))
