"""The mixture of sources with the lowest held-out loss, found with small runs and then checked."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import mean, stdev

import numpy as np

from conf.errors import InputError, did_you_mean
from launch.studies.base_command import BaseCommand
from launch.studies.fits.weights import (
    LEAST_RUNS_PER_SOURCE,
    Floats,
    Proposal,
    draw,
    nearest,
    propose,
)
from launch.studies.kind import (
    CHECK,
    FIT,
    Figure,
    Finding,
    RunResult,
    StudyKind,
    StudyRun,
    Table,
)
from pages.drawing import draw as draw_chart
from pages.drawing import source_styles
from pages.svg import Chart, Series

DIGITS = 4
"""Decimals of a weight in an override, so that equal mixtures have equal names."""
CANDIDATES = 20_000
RESAMPLES = 40
"""Number of samples of the runs from which intervals are computed."""
PROPOSED, NATURAL, UNIFORM = "proposed", "natural", "uniform"
CERTAIN_ERRORS = 2.0
"""Standard errors of a difference above which it is called more than noise."""
OVERRIDES = "mixture.txt"
"""File with the overrides that give the next run the proposed mixture."""


@dataclass
class Study(StudyKind):
    """Small runs with drawn mixtures, a regression of the losses, and runs that check its proposal.

    stages: names of the stages whose mixture is sought; empty for all. The others keep theirs.
    proxies: number of drawn mixtures, next to the natural one.
    concentration: how close draws are to the natural mixture; smaller is farther.
    target: weight of each held-out source in the loss to lower; empty for all alike.
    target_tokens: tokens of the run that the mixture is for; null for those of the base command. A
        source may serve at most data.max_epochs of its text to that run.
    check_seeds: seeds of the runs that compare the proposed, natural and uniform mixture.
    """

    stages: list[str] = field(default_factory=list)
    proxies: int = 24
    concentration: float = 4.0
    target: dict[str, float] = field(default_factory=dict)
    target_tokens: float | None = None
    check_seeds: list[int] = field(default_factory=lambda: [101, 102, 103])

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.concentration > 0:
            raise InputError(f"study.concentration={self.concentration}: expected more than 0.")
        if self.target_tokens is not None and not self.target_tokens > 0:
            raise InputError(f"study.target_tokens={self.target_tokens}: expected more than 0.")
        if any(weight < 0 for weight in self.target.values()) or (
            self.target and not sum(self.target.values()) > 0
        ):
            raise InputError(
                f"study.target={self.target}: expected weights of 0 or more, not all 0."
            )
        repeated = set(self.check_seeds) & set(self.seeds)
        if not self.check_seeds or repeated:
            raise InputError(
                f"study.check_seeds={self.check_seeds}: expected seeds that study.seeds="
                f"{self.seeds} does not have, at least one."
            )

    def runs(self, base: BaseCommand, results: Sequence[RunResult]) -> list[StudyRun]:
        """Returns the runs with drawn mixtures, and after them the runs of the check."""
        sources, natural, largest = self.sources(base), self.natural(base), self.largest(base)
        least = LEAST_RUNS_PER_SOURCE * len(sources)
        if self.proxies < least:
            raise InputError(
                f"study.proxies={self.proxies}: expected {least} or more for {len(sources)} "
                "sources."
            )
        drawn = draw(natural, largest, self.proxies, self.concentration, self.seeds[0])
        if drawn is None:
            raise InputError(
                "study.target_tokens: almost no mixture is within the limits of data.max_epochs. "
                "Raise data.max_epochs, or lower study.target_tokens."
            )
        found = [
            self.run(base, f"mixture_{number:02}", weights, seed, FIT)
            for seed in self.seeds
            for number, weights in enumerate((natural, *drawn))
        ]
        fitted = [result for result in results if result.run.role == FIT]
        if len(fitted) < least:
            return found
        return found + self.checks(base, self.proposal(base, fitted).weights)

    def later(self, base: BaseCommand) -> list[StudyRun]:
        """Returns the runs of the check, with the natural mixture in place of the proposed one."""
        return self.checks(base, self.natural(base))

    def checks(self, base: BaseCommand, proposed: Floats) -> list[StudyRun]:
        """Returns one run per mixture and seed of the check."""
        uniform = nearest(np.ones(len(proposed)), self.largest(base))
        mixtures = {PROPOSED: proposed, NATURAL: self.natural(base), UNIFORM: uniform}
        return [
            self.run(base, f"{name}_{seed}_{_code(weights)}", weights, seed, CHECK, name)
            for seed in self.check_seeds
            for name, weights in mixtures.items()
        ]

    def run(
        self,
        base: BaseCommand,
        name: str,
        weights: Floats,
        seed: int,
        role: str,
        mixture: str = "",
    ) -> StudyRun:
        """Returns a run with a mixture in the stages of the study."""
        sources = self.sources(base)
        values: dict[str, float | int | str] = {
            source: round(float(weight), DIGITS)
            for source, weight in zip(sources, weights, strict=True)
        }
        overrides = (*self.overrides(base, weights), f"seed={seed}")
        if mixture:
            values["mixture"] = mixture
        suffix = f"_{seed}" if role == FIT and len(self.seeds) > 1 else ""
        return StudyRun(name + suffix, overrides, values | {"seed": seed}, role)

    def overrides(self, base: BaseCommand, weights: Floats) -> list[str]:
        """Returns the overrides of `pretrain` that set a mixture in the stages of the study."""
        sources = self.sources(base)
        pairs = zip(sources, weights, strict=True)
        inner = ",".join(f"{source}:{weight:.{DIGITS}f}" for source, weight in pairs)
        return [f"recipe.stages.{stage}.mixture={{{inner}}}" for stage in self.chosen(base)]

    def chosen(self, base: BaseCommand) -> list[str]:
        """Returns the stages whose mixture is sought."""
        known = list(base.settings().recipe.stages)
        for stage in self.stages:
            if stage not in known:
                raise InputError(f"study.stages: no stage {stage}{did_you_mean(stage, known)}.")
        return list(self.stages) or known

    def sources(self, base: BaseCommand) -> list[str]:
        """Returns the names of the sources of the corpus."""
        found = list(base.source_tokens)
        if len(found) < 2:
            raise InputError(
                f"study: the corpus has one source, {found[0]}, so there is nothing to mix."
            )
        return found

    def natural(self, base: BaseCommand) -> Floats:
        """Returns the mixture by the size of the sources, within their limits."""
        tokens = np.array([base.source_tokens[name] for name in self.sources(base)], float)
        return nearest(tokens, self.largest(base))

    def largest(self, base: BaseCommand) -> Floats:
        """Returns the largest weight of each source in a run of target_tokens.

        Raises InputError if the text of all sources is too little for such a run.
        """
        target = self.target_tokens or base.tokens()
        passes = base.settings().data.max_epochs
        tokens = np.array([base.source_tokens[name] for name in self.sources(base)], float)
        largest = np.minimum(1.0, passes * tokens / target)
        if largest.sum() < 1:
            raise InputError(
                f"study.target_tokens={target:g}: {passes:g} passes over all sources are "
                f"{passes * tokens.sum():,.0f} tokens. Lower it, or raise data.max_epochs."
            )
        return largest

    def importance(self, base: BaseCommand, results: Sequence[RunResult]) -> dict[str, float]:
        """Returns the weight of each held-out source, summing to 1."""
        known = list(results[0].sources)
        for source in self.target:
            if source not in known:
                raise InputError(
                    f"study.target: no held-out source {source}{did_you_mean(source, known)}."
                )
        given = dict(self.target) or dict.fromkeys(known, 1.0)
        total = sum(given.values())
        return {source: weight / total for source, weight in given.items() if weight}

    def target_loss(self, base: BaseCommand, result: RunResult) -> float:
        """Returns the weighted mean of the held-out losses of a run."""
        weights = self.importance(base, [result])
        return sum(weight * result.sources[source].loss for source, weight in weights.items())

    def proposal(
        self, base: BaseCommand, fitted: Sequence[RunResult], resamples: int = 0
    ) -> Proposal:
        """Returns the mixture that the drawn runs propose."""
        sources, natural = self.sources(base), self.natural(base)
        importance = self.importance(base, fitted)
        # Seeds of one mixture are one point, the mean of their losses. Otherwise, validation would
        # leave out one seed and fit to another, and resampling would take seeds for draws.
        repeated: dict[tuple[float, ...], list[list[float]]] = {}
        for r in fitted:
            mixture = tuple(float(r.run.values[name]) for name in sources)
            repeated.setdefault(mixture, []).append([r.sources[name].loss for name in importance])
        weights = np.array(list(repeated))
        losses = np.array([np.mean(found, axis=0) for found in repeated.values()])
        drawn = draw(natural, self.largest(base), CANDIDATES, self.concentration, seed=1)
        assert drawn is not None  # as many draws as for the runs were within the limits
        return propose(
            weights,
            losses,
            np.array(list(importance.values())),
            natural,
            drawn,
            resamples=resamples,
        )

    def finding(self, base: BaseCommand, results: Sequence[RunResult]) -> Finding:
        """Returns the proposed mixture, and by how much it was better in the check."""
        fitted = [result for result in results if result.run.role == FIT]
        if len(fitted) < LEAST_RUNS_PER_SOURCE * len(self.sources(base)):
            raise InputError("study: too few runs have finished to compare mixtures.")
        proposal = self.proposal(base, fitted, RESAMPLES)
        differences = {
            other: self.differences(base, results, other) for other in (NATURAL, UNIFORM)
        }
        named = dict(zip(self.sources(base), proposal.weights.tolist(), strict=True))
        text = ", ".join(f"{source} {weight:.2f}" for source, weight in named.items())
        better = [other for other, found in differences.items() if found and mean(found) < 0]
        advice = (
            f"Keep the {' or the '.join(better)} mixture instead of the proposed one ({text})"
            if better
            else f"Train with {text}"
        )
        decision = f"{advice}: {self.verdict(differences)}"
        regression = [
            f"The loss of {source} is predicted by {fit.form} with an error of {fit.error:.4f} on "
            f"runs that were left out; the mean of all runs has {fit.error_of_mean:.4f}."
            for source, fit in zip(self.importance(base, fitted), proposal.regressions, strict=True)
        ]
        return Finding(
            decision,
            facts=[
                *regression,
                f"Its predicted gain over the natural mixture is {proposal.gain:.4f} nats per "
                "token.",
                f"The next run takes it with the overrides in {OVERRIDES}.",
            ],
            figures=[self.figure(base, fitted)],
            tables=[self.table(base, proposal), self.checked(base, results)],
            files={OVERRIDES: " ".join(self.overrides(base, proposal.weights)) + "\n"},
            numbers={
                "mixture": named,
                "low": proposal.low.tolist(),
                "high": proposal.high.tolist(),
                "differences": differences,
                "forms": [fit.form for fit in proposal.regressions],
                "errors": [fit.error for fit in proposal.regressions],
                "errors_of_mean": [fit.error_of_mean for fit in proposal.regressions],
            },
        )

    def differences(
        self, base: BaseCommand, results: Sequence[RunResult], other: str
    ) -> list[float]:
        """Returns the loss of a mixture less that of the proposed one, for each seed with both."""
        losses: dict[tuple[str, int], float] = {
            (str(r.run.values["mixture"]), int(r.run.values["seed"])): self.target_loss(base, r)
            for r in results
            if r.run.role == CHECK
        }
        pairs = [(losses.get((PROPOSED, s)), losses.get((other, s))) for s in self.check_seeds]
        return [b - a for a, b in pairs if a is not None and b is not None]

    def verdict(self, differences: dict[str, list[float]]) -> str:
        """Returns what the check says."""
        parts = []
        for other, found in differences.items():
            if not found:
                return "no run has checked it yet."
            gain = mean(found)
            word = "lower" if gain >= 0 else "higher"
            if len(found) < 2:
                parts.append(f"{abs(gain):.4f} {word} than {other} (one seed, too few to compare)")
                continue
            error = stdev(found) / math.sqrt(len(found))
            certain = abs(gain) > CERTAIN_ERRORS * error
            noise = "more than noise" if certain else "not distinguishable from noise"
            parts.append(f"{abs(gain):.4f} ± {error:.4f} {word} than {other} ({noise})")
        seeds = len(differences[NATURAL])
        return (
            f"on {seeds} fresh seeds, the target loss of the proposed mixture is "
            f"{' and '.join(parts)}, in nats per token."
        )

    def figure(self, base: BaseCommand, fitted: Sequence[RunResult]) -> Figure:
        """Returns the target loss by the share of each source."""
        sources = self.sources(base)
        styles = source_styles(sources)
        series = [
            Series(
                source,
                sorted(
                    (100 * float(r.run.values[source]), self.target_loss(base, r)) for r in fitted
                ),
                styles[source],
                dots=True,
                joined=False,
            )
            for source in sources
        ]
        chart = Chart("Target loss by share", "nats per token", series, "percent of the tokens")
        return Figure(
            draw_chart(chart, is_wide=True),
            "Each run has one dot per source, at the share of that source.",
        )

    def table(self, base: BaseCommand, proposal: Proposal) -> Table:
        """Returns the weights and passes of each source."""
        target = self.target_tokens or base.tokens()
        rows = [
            [
                source,
                f"{natural:.3f}",
                f"{weight:.3f}",
                f"{low:.3f} to {high:.3f}",
                f"{weight * target / base.source_tokens[source]:.2f}",
                f"{largest:.3f}",
            ]
            for source, natural, weight, low, high, largest in zip(
                self.sources(base),
                self.natural(base),
                proposal.weights,
                proposal.low,
                proposal.high,
                self.largest(base),
                strict=True,
            )
        ]
        columns = ["source", "natural", "proposed", "90% interval", "passes", "at most"]
        return Table(
            "Mixture",
            columns,
            rows,
            note="The interval is that of fits to resampled runs.",
        )

    def checked(self, base: BaseCommand, results: Sequence[RunResult]) -> Table:
        """Returns the target losses of the check."""
        checks = [result for result in results if result.run.role == CHECK]
        rows = [
            [
                str(r.run.values["mixture"]),
                str(r.run.values["seed"]),
                f"{self.target_loss(base, r):.4f}",
            ]
            for r in checks
        ]
        return Table("Check with fresh seeds", ["mixture", "seed", "target loss"], rows)


def _code(weights: Floats) -> str:
    """Returns a short name of a mixture: its weights in percent."""
    return "_".join(f"{100 * weight:.2f}".rstrip("0").rstrip(".") for weight in weights)
