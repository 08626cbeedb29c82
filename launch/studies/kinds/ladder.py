"""Small models of the target's shape whose losses forecast the target's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from conf.errors import InputError, one_of
from launch.studies.base_command import BaseCommand
from launch.studies.branching import budget_runs
from launch.studies.kind import FIT, TARGET, Finding, RunResult, StudyKind, StudyRun
from launch.studies.ladder.finding import LadderFinding
from launch.studies.ladder.page import finding_of
from launch.studies.ladder.rules import RULES, Settings, settings_of
from launch.studies.ladder.shapes import COUNTS, count, overrides, shape_of
from launch.studies.ladder.target import Target
from model.config import ModelConfig

CHINCHILLA = 20
"""Tokens per parameter at which Chinchilla's models use their FLOPs best (arXiv 2203.15556)."""


@dataclass
class Study(StudyKind):
    """Forecasts the loss of a run from smaller ones of the same shape; see docs/ladder.md.

    The base command is that of the target. Each size has one trunk, and one branch per number of
    tokens in which the learning rate decays.

    sizes: numbers of parameters of the models; empty to choose them from the next three keys.
    num_sizes: number of sizes.
    size_step: factor between neighboring sizes.
    gap: factor between the target and the largest size.
    multiples: numbers of tokens, as multiples of tokens_per_parameter times the size.
    tokens_per_parameter: tokens per parameter for the multiple 1; 20 is Chinchilla's ratio.
    decay_fraction: fraction of the tokens in which the learning rate decays to 0.
    rule: how learning rate and batch depend on the size: olmo, scaled or transfer.
    rate_factor: factor on the learning rate of the rule.
    batch_samples: number of sequences of which each batch is a multiple, such as the number of
        data-parallel ranks.
    counted: parameters that N counts: head for those of blocks and head, non_embedding or all.
    draws: number of draws from which the intervals are computed.
    flops: budget in FLOPs for which the best size is computed; null for the cost of the target.
    target_seeds: seeds with which the target is trained too, by the same rule; empty for none.
    target_runs: run folders of the target that were trained elsewhere, for the comparison.
    """

    sizes: list[float] = field(default_factory=list)
    num_sizes: int = 4
    size_step: float = 2.0
    gap: float = 4.0
    multiples: list[float] = field(default_factory=lambda: [1.0, 2.0, 4.0])
    tokens_per_parameter: float = CHINCHILLA
    decay_fraction: float = 0.2
    rule: str = RULES[0]
    rate_factor: float = 1.0
    batch_samples: int = 1
    counted: str = COUNTS[0]
    draws: int = 200
    flops: float | None = None
    target_seeds: list[int] = field(default_factory=list)
    target_runs: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("study.rule", self.rule, RULES)
        one_of("study.counted", self.counted, COUNTS)
        if self.size_step <= 1 or self.gap < 1:
            raise InputError(
                f"study.size_step={self.size_step}, study.gap={self.gap}: expected a step above 1 "
                "and a gap of at least 1."
            )
        if not 0 < self.decay_fraction < 1:
            raise InputError(
                f"study.decay_fraction={self.decay_fraction}: expected a fraction between 0 and 1."
            )
        for key, found in (
            ("sizes", len(self.sizes) or self.num_sizes),
            ("multiples", len(self.multiples)),
        ):
            if found < 3:
                raise InputError(f"study.{key}: found {found}. The law needs at least 3.")

    def runs(self, base: BaseCommand, results: Sequence[RunResult]) -> list[StudyRun]:
        """Returns a trunk with its branches per size and seed, and the target if it is trained."""
        target = Target.of(base, self.counted)
        found = []
        for model in self.models(target):
            size = count(model, self.counted)
            for seed in self.seeds:
                run = StudyRun(
                    name=f"{size}" + (f"-seed{seed}" if seed != self.seeds[0] else ""),
                    overrides=self._overrides(target, model, seed),
                    values={"size": size, "seed": seed},
                    role=FIT,
                )
                found += budget_runs(base, run, self.budgets(target, model), self.decay_fraction)
        return found + [self._target_run(target, seed) for seed in self.target_seeds]

    def finding(self, base: BaseCommand, results: Sequence[RunResult]) -> Finding:
        """Returns the law, its forecast of the target, and what else it says."""
        target = Target.of(base, self.counted)
        settings = self.settings(target, target.model)
        return finding_of(LadderFinding(self, target, results, settings))

    def models(self, target: Target) -> list[ModelConfig]:
        """Returns the models of the ladder, the smallest first.

        Raises:
            InputError: fewer than 3 of them differ.
        """
        wanted = self.sizes or [
            target.size / self.gap / self.size_step**step for step in range(self.num_sizes)
        ]
        found = {
            count(model, self.counted): model
            for model in (shape_of(target.model, size, self.counted) for size in wanted)
        }
        if len(found) < 3:
            raise InputError(
                f"study.sizes: only {len(found)} different models have the shape of the target at "
                "these sizes. Give sizes that differ more, or a target with more heads."
            )
        return [found[size] for size in sorted(found)]

    def settings(self, target: Target, model: ModelConfig) -> Settings:
        """Returns learning rate, batch, warm-up and beta2 of a model."""
        return settings_of(
            self.rule, model, target.settings, self.batch_samples, target.seq_len, self.rate_factor
        )

    def budgets(self, target: Target, model: ModelConfig) -> list[int]:
        """Returns the numbers of tokens of a model, in whole batches."""
        batch = self.settings(target, model).batch_tokens
        tokens = self.tokens_per_parameter * count(model, self.counted)
        return [max(2, round(multiple * tokens / batch)) * batch for multiple in self.multiples]

    def _overrides(self, target: Target, model: ModelConfig, seed: int) -> tuple[str, ...]:
        settings = self.settings(target, model)
        shortest = min(self.budgets(target, model)) * (1 - self.decay_fraction)
        warmup = min(settings.warmup_tokens, round(shortest / 4))
        return (
            *overrides(model),
            *target.stage_overrides,
            *settings._replace(warmup_tokens=warmup).overrides(),
            f"seed={seed}",
        )

    def _target_run(self, target: Target, seed: int) -> StudyRun:
        settings = self.settings(target, target.model)
        warmup = min(settings.warmup_tokens, round(target.tokens / 10))
        return StudyRun(
            name=f"target-seed{seed}",
            overrides=(
                *target.stage_overrides,
                *settings._replace(warmup_tokens=warmup).overrides(),
                "optim.schedule=wsd",
                "optim.decay_shape=sqrt",
                f"optim.decay_tokens={round(target.tokens * self.decay_fraction)}",
                f"recipe.stages.{target.stage}.tokens={target.tokens}",
                f"seed={seed}",
            ),
            values={"size": target.size, "seed": seed, "budget": target.tokens},
            role=TARGET,
        )
