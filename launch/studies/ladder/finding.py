"""Computes the law of a ladder, its forecast of the target, and the best size for a budget."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from conf.errors import InputError
from launch.studies.fits.scaling_law import (
    LEVEL,
    Backtest,
    Fit,
    Interval,
    fit_with_intervals,
    forecast_largest,
    points_of,
)
from launch.studies.fits.tasks import fit_scores
from launch.studies.kind import FIT, TARGET, RunResult
from launch.studies.ladder.keys import LadderKeys
from launch.studies.ladder.rules import Settings
from launch.studies.ladder.shapes import FlopsBySize, overrides, shape_of
from launch.studies.ladder.target import Target
from launch.studies.ladder.trained import Trained, trained_elsewhere
from pages.svg import short_number

MANY_EPOCHS = 4
"""Passes over the data from which repeated tokens are worth clearly less (arXiv 2305.16264)."""
LEAST_LIMIT = 0.01
"""E relative to the forecast below which the page says that the losses do not flatten."""
ACCURACIES = ("acc_norm", "acc", "exact_match")


@dataclass(frozen=True)
class LadderFinding:
    """The finding of a ladder.

    Attributes:
        study: Keys of the study.
        target: The run that is forecast.
        results: Results of the runs that have finished.
        settings: Settings of the target by the rule of the study.
    """

    study: LadderKeys
    target: Target
    results: Sequence[RunResult]
    settings: Settings

    @property
    def facts(self) -> list[str]:
        """Sentences that follow the decision.

        Raises:
            InputError: too few runs have finished.
        """
        found = [self.got.sentence(self.forecast)] if self.got else []
        found += [
            self._law(),
            self._unseen_limit(),
            self._forecast(),
            self._best(),
            self._doubling(),
            self._noise(),
        ]
        found += [self._tested(), self._target_settings(), self._repeats(), *self._refused_tasks()]
        return [fact for fact in found if fact]

    @cached_property
    def fitted(self) -> list[RunResult]:
        """The results that the law is fitted to."""
        return [result for result in self.results if result.run.role == FIT]

    @cached_property
    def law(self) -> Fit:
        """The law of the mean held-out loss."""
        return self._fit([result.loss for result in self.fitted])

    def _fit(self, losses: list[float]) -> Fit:
        sizes = [float(result.run.values["size"]) for result in self.fitted]
        tokens = [float(result.tokens) for result in self.fitted]
        try:
            points = points_of(sizes, tokens, losses)
        except ValueError as error:
            raise InputError(f"study: {error}. Wait for more runs, or add sizes.") from None
        return fit_with_intervals(
            points, seed_noise=self._seed_noise(losses), draws=self.study.draws
        )

    def _seed_noise(self, losses: list[float]) -> float:
        """Returns the standard deviation of log L between seeds, or 0 without repeated runs."""
        groups = defaultdict(list)
        for result, loss in zip(self.fitted, losses, strict=True):
            groups[result.run.values["size"], result.tokens].append(np.log(loss))
        repeated = [np.array(group) for group in groups.values() if len(group) > 1]
        freedom = sum(len(group) - 1 for group in repeated)
        squares = sum(float(np.sum((group - group.mean()) ** 2)) for group in repeated)
        return float(np.sqrt(squares / freedom)) if freedom else 0.0

    @cached_property
    def forecast(self) -> Interval:
        """The loss of the target, with the interval for one run."""
        return self.law.forecast(self.target.size, self.target.tokens)

    @cached_property
    def backtest(self) -> Backtest | None:
        """The forecast of the largest size from the smaller ones."""
        return forecast_largest(self.law.points, draws=self.study.draws)

    @cached_property
    def by_source(self) -> dict[str, dict[str, Fit]]:
        """Laws per source, in nats per token (`loss`) and in bits per byte."""
        found: dict[str, dict[str, Fit]] = {}
        for source in self.fitted[0].sources:
            scores = [result.sources[source] for result in self.fitted]
            found[source] = {"loss": self._fit([score.loss for score in scores])}
            bits = [score.bits_per_byte for score in scores if score.bits_per_byte is not None]
            if len(bits) == len(scores):
                found[source]["bits_per_byte"] = self._fit(bits)
        return found

    @cached_property
    def scores(self) -> dict[str, Interval]:
        """Forecasts of the scores that rise over the runs."""
        return {task: found for task, found in self._task_forecasts.items() if found is not None}

    @cached_property
    def _task_forecasts(self) -> dict[str, Interval | None]:
        found: dict[str, Interval | None] = {}
        for task in self.fitted[0].tasks:
            metric = next((m for m in ACCURACIES if m in self.fitted[0].tasks[task]), None)
            rows = [
                (r.loss, r.tasks[task][metric]) for r in self.fitted if task in r.tasks and metric
            ]
            if len(rows) > 5:
                losses, scores = (np.array(column) for column in zip(*rows, strict=True))
                fit = fit_scores(losses, scores, draws=self.study.draws // 2)
                size, tokens = self.target.size, self.target.tokens
                found[task] = fit.forecast(self.law, size, tokens) if fit.rises else None
        return found

    @cached_property
    def flops_by_size(self) -> FlopsBySize:
        """Training FLOPs per token by size, for models of the target's shape."""
        return FlopsBySize(self.target.model, self.target.seq_len, self.study.counted)

    @property
    def flops(self) -> float:
        """The budget for which the best size is computed."""
        return self.study.flops or self.target.flops

    @cached_property
    def best(self) -> Interval:
        """The size with the lowest loss for the budget, among those that the shape has."""
        sizes = self.flops_by_size
        return self.law.interval(
            lambda law: law.best_size(self.flops, sizes, sizes.smallest, sizes.largest)
        )

    @cached_property
    def is_determined(self) -> bool:
        """True if the interval of the best size is between the smallest and the largest one."""
        sizes = self.flops_by_size
        return self.best.low > 1.01 * sizes.smallest and self.best.high < 0.99 * sizes.largest

    @cached_property
    def best_tokens(self) -> float:
        """The tokens that the best size sees for the budget."""
        return self.flops / self.flops_by_size(self.best.value)

    @cached_property
    def gain_of_best(self) -> Interval:
        """The loss of the target minus that of the best size at the same FLOPs."""
        size, tokens = self.best.value, self.target.flops / self.flops_by_size(self.best.value)
        return self.law.interval(
            lambda law: law.loss(self.target.size, self.target.tokens) - law.loss(size, tokens)
        )

    @cached_property
    def gain_of_doubling(self) -> Interval:
        """The fall of the loss if the target sees twice the tokens."""
        size, tokens = self.target.size, self.target.tokens
        return self.law.interval(lambda law: law.gain_of_doubling(size, tokens))

    @cached_property
    def got(self) -> Trained | None:
        """The losses of the target after it was trained, or None."""
        runs = [result for result in self.results if result.run.role == TARGET]
        losses = [result.loss for result in runs]
        sources = [{name: (s.loss, s.bits_per_byte) for name, s in r.sources.items()} for r in runs]
        for loss, by_source in map(trained_elsewhere, self.study.target_runs):
            losses.append(loss)
            sources.append(by_source)
        return Trained(losses, sources) if losses else None

    @property
    def decision(self) -> str:
        """The sentence that says what to train, and which loss to expect."""
        size, tokens = short_number(self.target.size), short_number(self.target.tokens)
        sure = f"{LEVEL:.0%} interval {self.forecast.low:.3f} to {self.forecast.high:.3f}"
        expected = f"a held-out loss of {self.forecast.value:.3f} nats per token ({sure})"
        if not self.is_determined:
            return (
                f"These runs do not tell which size is best for {self.flops:.2g} FLOPs; the "
                f"target, {size} parameters on {tokens} tokens, is expected to reach {expected}."
            )
        if self.study.flops:
            return (
                f"For {self.flops:.2g} FLOPs, train about {short_number(self.best.value)} "
                f"parameters ({_range(self.best)}) on {short_number(self.best_tokens)} tokens; the "
                f"target, {size} parameters on {tokens} tokens, is expected to reach {expected}."
            )
        clear = self.law.noise * self.forecast.value
        if self.gain_of_best.value > clear and self.gain_of_best.low > 0:
            return (
                f"Train {short_number(self.best.value)} parameters ({_range(self.best)}) on "
                f"{short_number(self.best_tokens)} tokens instead of {size} on {tokens}: the same "
                f"FLOPs give a loss lower by {self.gain_of_best.value:.3f} "
                f"({_range(self.gain_of_best, 3)}); the target as it is reaches {expected}."
            )
        return (
            f"Train the target as it is: {size} parameters on {tokens} tokens are expected to "
            f"reach {expected}, and no other size is clearly better for the same FLOPs."
        )

    def _law(self) -> str:
        law = self.law.law
        return (
            f"The law is L(N, D) = {law.E:.3f} + {law.A:.4g} / N^{law.a:.3f} + {law.B:.4g} / "
            f"D^{law.b:.3f}, with N the parameters {_counted(self.study.counted)}, and D the "
            f"tokens. It was fitted to {len(self.fitted)} runs."
        )

    def _unseen_limit(self) -> str:
        if self.law.law.E / self.forecast.value > LEAST_LIMIT:
            return ""
        return (
            "The losses do not flatten yet (E is 0), as those of models that are too small or see "
            "too few tokens, so the forecast may be wrong by more than its interval says. Give "
            "larger sizes or multiples."
        )

    def _forecast(self) -> str:
        largest = self.law.points.parameters.max(), self.law.points.tokens.max()
        return (
            f"The target has {self.target.size / largest[0]:.3g} times the parameters and "
            f"{self.target.tokens / largest[1]:.3g} times the tokens of the largest runs here."
        )

    def _best(self) -> str:
        if not self.is_determined:
            return (
                "The interval of the best size reaches the smallest or the largest model of this "
                "shape. Give more sizes, seeds, or larger multiples."
            )
        model = shape_of(self.target.model, self.best.value, self.study.counted)
        return (
            f"For {self.flops:.2g} FLOPs, the best size is {short_number(self.best.value)} "
            f"({_range(self.best)}), with {short_number(self.best_tokens)} tokens. A model near "
            f"it: {' '.join(overrides(model))}."
        )

    def _doubling(self) -> str:
        gain = self.gain_of_doubling
        return (
            f"Twice the tokens would lower the loss of the target by {gain.value:.3f} "
            f"({_range(gain, 3)}), for twice the FLOPs."
        )

    def _noise(self) -> str:
        worst = float(np.abs(self.law.residuals).max())
        return (
            f"The runs differ from the law by up to {worst:.2%}; its noise is estimated as "
            f"{self.law.noise:.2%} of the loss per run."
        )

    def _tested(self) -> str:
        if self.backtest is None:
            return "There are too few sizes to forecast the largest one from the others."
        worst = max(self.backtest.errors, key=abs)
        return (
            f"As a test, the law fitted without the largest size forecasts its "
            f"{len(self.backtest.errors)} runs with an error of at most {abs(worst):.2%}; "
            f"{self.backtest.covered} of them are inside their {LEVEL:.0%} intervals."
        )

    def _target_settings(self) -> str:
        own, rule = self.target.settings, self.settings
        same = abs(np.log(own.optim.learning_rate / rule.learning_rate)) < np.log(1.2) and abs(
            np.log(own.recipe.global_batch_tokens / rule.batch_tokens)
        ) < np.log(1.5)
        stated = (
            f"The forecast is for study.rule={self.study.rule}: a learning rate of "
            f"{rule.learning_rate:.2g}, batches of {rule.batch_tokens:,} tokens, a warm-up over "
            f"{rule.warmup_tokens:,} tokens, beta2 {rule.beta2}, and a decay to 0 over the last "
            f"{self.study.decay_fraction:.0%} of the tokens."
        )
        if same:
            return stated
        return (
            f"{stated} The command of the target sets {own.optim.learning_rate:.2g} and "
            f"{own.recipe.global_batch_tokens:,} tokens instead."
        )

    def _repeats(self) -> str:
        passes = self.target.tokens / max(1, self.target.corpus_tokens)
        if passes <= 1:
            return ""
        harm = "; expect a higher loss than forecast" if passes > MANY_EPOCHS else ""
        return (
            f"The target passes over the corpus {passes:.1f} times, and the law takes repeated "
            f"tokens for new ones{harm}."
        )

    def _refused_tasks(self) -> list[str]:
        flat = [task for task, found in self._task_forecasts.items() if found is None]
        return [f"No forecast of {', '.join(flat)}: the scores do not rise yet."] if flat else []

    @property
    def forecast_content(self) -> dict[str, Any]:
        """The content of the forecast's file."""
        size, tokens = self.target.size, self.target.tokens
        return {
            "hidden_size": self.target.model.hidden_size,
            "num_layers": self.target.model.num_layers,
            "tokens": tokens,
            "level": LEVEL,
            "loss": self.forecast._asdict(),
            "sources": {
                source: {unit: fit.forecast(size, tokens)._asdict() for unit, fit in fits.items()}
                for source, fits in self.by_source.items()
            },
            "tasks": {task: found._asdict() for task, found in self.scores.items()},
        }

    @property
    def numbers(self) -> dict[str, Any]:
        """The content of `finding.json`."""
        return {
            "forecast": self.forecast_content,
            "law": {name: found._asdict() for name, found in self.law.constants.items()},
            "noise": self.law.noise,
            "residuals": [float(value) for value in self.law.residuals],
            "backtest_errors": self.backtest.errors if self.backtest else [],
            "best_size": self.best._asdict() | {"flops": self.flops, "tokens": self.best_tokens},
            "gain_of_doubling": self.gain_of_doubling._asdict(),
            "target": self.got.numbers(self.forecast) if self.got else None,
        }


def _range(interval: Interval, digits: int | None = None) -> str:
    low, high = interval.low, interval.high
    if digits is None:
        return f"{short_number(low)} to {short_number(high)}"
    return f"{LEVEL:.0%} interval {low:.{digits}f} to {high:.{digits}f}"


def _counted(counted: str) -> str:
    return {
        "head": "in matrix products, those of the blocks and of the head",
        "non_embedding": "without embedding and head",
        "all": "of the whole model",
    }[counted]
