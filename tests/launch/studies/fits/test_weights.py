"""Draws of mixtures within limits, and the best mixture of losses with known constants."""

from __future__ import annotations

import numpy as np
import pytest

from launch.studies.fits.weights import (
    best_mixture,
    draw,
    forms,
    mixing_law,
    nearest,
    propose,
    regress,
)

NATURAL = np.array([0.6, 0.3, 0.1])
FREE = np.ones(3)
SLOPES = np.array([-0.5, -2.0, 1.0])


def losses_of(weights, noise=0.0, seed=0):
    """Losses of a known law, best with the second source alone."""
    clean = 2.0 + np.exp(0.5 + weights @ SLOPES)
    return clean + noise * np.random.default_rng(seed).standard_normal(len(weights))


def test_draws_are_mixtures_within_limits_and_around_the_center():
    largest = np.array([0.7, 1.0, 0.2])
    found = draw(NATURAL, largest, 200, 4.0, 1)
    assert found is not None
    assert found.shape == (200, 3)
    np.testing.assert_allclose(found.sum(1), 1)
    assert (found <= largest).all()
    assert (found == draw(NATURAL, largest, 200, 4.0, 1)).all()
    free = draw(NATURAL, FREE, 2000, 4.0, 1)
    assert free is not None
    np.testing.assert_allclose(free.mean(0), NATURAL, atol=0.03)


def test_limits_that_leave_almost_nothing_give_no_draws(monkeypatch):
    monkeypatch.setattr("launch.studies.fits.weights.ATTEMPTS", 2000)
    assert draw(NATURAL, np.array([0.02, 0.02, 0.961]), 5, 4000.0, 0) is None


def test_what_a_source_cannot_serve_goes_to_the_others_in_proportion():
    np.testing.assert_allclose(nearest(NATURAL, np.array([0.2, 1.0, 1.0])), [0.2, 0.6, 0.2])
    np.testing.assert_allclose(nearest(NATURAL, np.array([0.2, 0.5, 1.0])), [0.2, 0.5, 0.3])
    np.testing.assert_allclose(nearest(np.array([2.0, 2.0]), np.ones(2)), [0.5, 0.5])


def test_a_mixing_law_predicts_mixtures_that_it_has_not_seen():
    seen, unseen = draw(NATURAL, FREE, 24, 3.0, 0), draw(NATURAL, FREE, 100, 3.0, 1)
    assert seen is not None
    assert unseen is not None
    predicted = mixing_law(seen, losses_of(seen))(unseen)
    np.testing.assert_allclose(predicted, losses_of(unseen), rtol=0.02)


def test_validation_prefers_the_form_that_holds():
    weights = draw(NATURAL, FREE, 24, 3.0, 0)
    assert weights is not None
    found = regress(weights, losses_of(weights, 0.005))
    assert found.form == "a mixing law"
    assert found.error < 0.3 * found.error_of_mean
    noise = np.random.default_rng(3).standard_normal(24)
    nothing = regress(weights, noise)
    assert nothing.error > 0.8 * nothing.error_of_mean  # pure noise is not predicted


def test_trees_find_a_threshold():
    if "gradient-boosted trees" not in forms():
        pytest.skip("no package lightgbm here")
    weights = draw(NATURAL, FREE, 200, 2.0, 0)
    assert weights is not None
    steps = np.where(weights[:, 1] > 0.4, 2.0, 3.0)
    assert regress(weights, steps).form == "gradient-boosted trees"


def test_the_proposal_moves_to_the_useful_source_within_its_limit():
    largest = np.array([1.0, 0.5, 1.0])
    weights, candidates = draw(NATURAL, largest, 24, 3.0, 0), draw(NATURAL, largest, 5000, 3.0, 1)
    assert weights is not None
    assert candidates is not None
    other = 3.0 + 0 * losses_of(weights)
    losses = np.stack([losses_of(weights, 0.01), other + 0.01 * weights[:, 0]], 1)
    found = propose(weights, losses, np.array([1.0, 0.0]), NATURAL, candidates, resamples=10)
    assert found.weights[1] > 0.45
    assert found.weights[1] <= 0.5
    assert found.weights[2] < 0.05
    assert (found.low <= found.weights + 0.02).all()
    assert (found.high >= found.weights - 0.02).all()
    best = best_mixture(losses_of, candidates)
    gain = losses_of(NATURAL[None])[0] - losses_of(best[None])[0]
    assert found.gain == pytest.approx(gain, abs=0.05)
