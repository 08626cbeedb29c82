"""Predicts held-out losses from the weights of sources, and finds the best mixture.

Mixtures are drawn around a given one and limited by the text that there is. Each held-out loss is
regressed on the weights, by the form of data mixing laws (arXiv 2403.16952),

    loss(w) = bottom + exp(level + slopes @ w)

and by gradient-boosted trees (RegMix, arXiv 2407.01492). Cross-validation chooses between them, and
tells whether either predicts better than the mean of all losses.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares

Floats = NDArray[np.float64]
Predict = Callable[[Floats], Floats]
"""Maps weights (mixtures, sources) to losses (mixtures,)."""
Form = Callable[[Floats, Floats], Predict]
"""Fits weights (runs, sources) and losses (runs,)."""

ATTEMPTS = 200_000
"""Number of draws after which limits count as too narrow."""
BATCH = 1000
"""Number of draws at once."""
RIDGE = 1e-3
"""Weight of the squared slopes, in units of the variance of the losses: it decides between slopes
that differ by a constant, which the weights' sum of 1 makes equal."""
FOLDS = 8
TOP = 0.002
"""Share of the candidates whose mean is the best mixture, which a single one would overstate."""
LEAST_RUNS_PER_SOURCE = 2


def draw(
    center: Floats, largest: Floats, count: int, concentration: float, seed: int
) -> Floats | None:
    """Returns mixtures (count, sources) drawn around `center` within limits.

    They are Dirichlet draws, each with a concentration between a quarter and four times the given
    one; those with a weight above its limit are rejected.

    Args:
        center: Mixture (sources,) that sums to 1.
        largest: Largest weight of each source.
        count: Number of mixtures.
        concentration: Sum of the Dirichlet parameters; smaller is farther from the center.
        seed: Seed of the draws.

    Returns:
        The mixtures, or None if too few draws are within the limits.
    """
    random = np.random.default_rng(seed)
    found = np.empty((0, len(center)))
    for _ in range(ATTEMPTS // BATCH):
        scales = concentration * 4.0 ** random.uniform(-1, 1, (BATCH, 1))
        # Gamma variates divided by their sum are a Dirichlet draw.
        weights = random.standard_gamma(np.maximum(scales * center, 1e-3)) + 1e-12
        weights /= weights.sum(1, keepdims=True)
        found = np.concatenate((found, weights[(weights <= largest).all(1)]))
        if len(found) >= count:
            return found[:count]
    return None


def nearest(weights: Floats, largest: Floats) -> Floats:
    """Returns the mixture with limits: what a source cannot serve goes to the others in proportion.

    The limits have to sum to 1 or more.
    """
    found = weights / weights.sum()
    for _ in range(len(found)):
        over = found > largest
        if not over.any():
            break
        free = ~over & (found < largest)
        rest = 1.0 - np.minimum(found, largest)[~free].sum()
        share = found * free
        found = np.where(free, share / share.sum() * rest, np.minimum(found, largest))
    return found


def mixing_law(weights: Floats, losses: Floats) -> Predict:
    """Fits bottom + exp(level + slopes @ w) by least squares, with a penalty on the slopes."""
    spread = float(losses.std()) or 1e-6
    sources = weights.shape[1]

    def predict(constants: Floats, at: Floats) -> Floats:
        return constants[0] + np.exp(np.clip(constants[1] + at @ constants[2:], -30, 30))

    def residuals(constants: Floats) -> Floats:
        misses = (predict(constants, weights) - losses) / spread
        return np.concatenate((misses, np.sqrt(RIDGE) * constants[2:]))

    def slopes_of(constants: Floats) -> Floats:
        above = (predict(constants, weights) - constants[0])[:, None]
        misses = np.hstack((np.ones_like(above), above, above * weights)) / spread
        penalty = np.hstack((np.zeros((sources, 2)), np.sqrt(RIDGE) * np.eye(sources)))
        return np.vstack((misses, penalty))

    starts = [losses.min() - spread * far for far in (1.0, 5.0, 25.0)]
    fits = [
        least_squares(
            residuals,
            np.array([start, np.log(losses.mean() - start), *[0.0] * sources]),
            slopes_of,
            method="lm",
        )
        for start in starts
    ]
    best = min(fits, key=lambda fit: fit.cost).x
    return lambda at: predict(best, at)


def trees(weights: Floats, losses: Floats) -> Predict:
    """Fits gradient-boosted trees with the package lightgbm."""
    import lightgbm

    model: Any = lightgbm.LGBMRegressor(
        n_estimators=300,
        learning_rate=0.05,
        num_leaves=8,
        min_child_samples=3,
        n_jobs=1,
        random_state=0,
        verbose=-1,
    )
    model.fit(weights, losses)
    return lambda at: np.asarray(model.booster_.predict(at))


def forms() -> dict[str, Form]:
    """Returns the forms of regression that are installed, by name."""
    found: dict[str, Form] = {"a mixing law": mixing_law}
    if importlib.util.find_spec("lightgbm"):
        found["gradient-boosted trees"] = trees
    return found


@dataclass(frozen=True)
class Regression:
    """A loss as a function of the weights.

    Attributes:
        form: Name of the form.
        predict: The fitted function.
        error: Root mean square of its errors on runs that it was not fitted to.
        error_of_mean: The same for the mean of the losses, which knows nothing of the weights.
    """

    form: str
    predict: Predict
    error: float
    error_of_mean: float


def regress(weights: Floats, losses: Floats, only: Sequence[str] | None = None) -> Regression:
    """Returns the regression whose form has the smallest error in cross-validation."""
    known = forms()
    candidates = {name: known[name] for name in only or known}
    errors = {name: validated(form, weights, losses) for name, form in candidates.items()}
    best = min(errors, key=lambda name: errors[name])

    def mean_of(_: Floats, some: Floats) -> Predict:
        return lambda at: np.full(len(at), some.mean())

    return Regression(
        best,
        candidates[best](weights, losses),
        errors[best],
        validated(mean_of, weights, losses),
    )


def validated(form: Form, weights: Floats, losses: Floats) -> float:
    """Returns the root mean square error on parts of the runs that were left out of the fit."""
    folds = min(FOLDS, len(losses))
    squares = []
    for fold in range(folds):
        out = np.arange(len(losses)) % folds == fold
        missed = form(weights[~out], losses[~out])(weights[out]) - losses[out]
        squares.extend((missed**2).tolist())
    return float(np.sqrt(np.mean(squares)))


def best_mixture(predict: Predict, candidates: Floats) -> Floats:
    """Returns the mean of the candidates with the lowest predicted losses."""
    order = np.argsort(predict(candidates), kind="stable")
    return candidates[order[: max(1, round(TOP * len(candidates)))]].mean(0)


@dataclass(frozen=True)
class Proposal:
    """The best mixture, and how far other samples of the runs would move it.

    Attributes:
        weights: (sources,).
        low: 5th percentile of each weight over the resampled runs.
        high: 95th percentile.
        regressions: Regression of each target loss, in their order.
        gain: Predicted loss of the natural mixture less that of the proposed one.
    """

    weights: Floats
    low: Floats
    high: Floats
    regressions: tuple[Regression, ...]
    gain: float


def propose(
    weights: Floats,
    losses: Floats,
    importance: Floats,
    natural: Floats,
    candidates: Floats,
    *,
    resamples: int = 40,
    seed: int = 0,
) -> Proposal:
    """Returns the mixture with the lowest predicted mean of the target losses.

    Args:
        weights: Mixtures of the runs (runs, sources).
        losses: Target losses of the runs (runs, targets).
        importance: Weight of each target loss (targets,), summing to 1.
        natural: The mixture to compare with.
        candidates: Mixtures (any, sources) among which to look.
        resamples: Number of bootstrap samples of the runs.
        seed: Seed of the bootstrap.
    """
    regressions = tuple(regress(weights, column) for column in losses.T)

    def total(of: Sequence[Predict]) -> Predict:
        return lambda at: np.sum([i * f(at) for i, f in zip(importance, of, strict=True)], axis=0)

    predict = total([regression.predict for regression in regressions])
    proposed = best_mixture(predict, candidates)
    random = np.random.default_rng(seed)
    known, others = forms(), []
    for _ in range(resamples):
        rows = random.integers(len(weights), size=len(weights))
        refitted = [
            known[regression.form](weights[rows], losses[rows, number])
            for number, regression in enumerate(regressions)
        ]
        others.append(best_mixture(total(refitted), candidates))
    low, high = np.percentile(others, (5, 95), axis=0) if others else (proposed, proposed)
    gain = float(predict(natural[None])[0] - predict(proposed[None])[0])
    return Proposal(proposed, low, high, regressions, gain)
