"""The plan of a run: which stage a step belongs to, and which samples it takes.

Everything follows from the recipe in closed form; a step's tokens are the same in all stages.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from conf.errors import InputError, did_you_mean
from data_pipeline.order import OrderStage
from pretrain.config import RecipeConfig


@dataclass(frozen=True)
class Stage:
    """A stage in steps: `first_step` up to, not including, `first_step + steps`."""

    index: int
    name: str
    seq_len: int
    first_step: int
    steps: int
    samples_per_step: int
    weights: dict[str, float]
    rope_theta: float | None
    planned_steps: int | None = None

    @property
    def end_step(self) -> int:
        """The first step after the stage."""
        return self.first_step + self.steps

    def order_stage(self) -> OrderStage:
        """The stage as the order of samples sees it."""
        planned = None if self.planned_steps is None else self.planned_steps * self.samples_per_step
        return OrderStage(self.seq_len, self.steps * self.samples_per_step, self.weights, planned)


class StagePlan:
    """The stages of a recipe on a corpus.

    source_tokens: training tokens of each source; raises InputError for a mixture that names
    another, or a batch that is not a whole number of sequences.
    """

    def __init__(self, recipe: RecipeConfig, source_tokens: Mapping[str, int]) -> None:
        self.global_batch_tokens = recipe.global_batch_tokens
        self.stages: list[Stage] = []
        first_step = 0
        for index, (name, stage) in enumerate(recipe.stages.items()):
            key = f"recipe.stages.{name}"
            for source, weight in stage.mixture.items():
                if source not in source_tokens:
                    raise InputError(
                        f"{key}.mixture names the source '{source}', which the corpus does not "
                        f"have{did_you_mean(source, source_tokens)}."
                    )
                if weight < 0:
                    raise InputError(f"{key}.mixture.{source}={weight}, expected 0 or more.")
            weights = dict(stage.mixture) or {s: float(t) for s, t in source_tokens.items()}
            if sum(weights.values()) <= 0:
                raise InputError(f"{key}.mixture has no weight above 0: no source is left.")
            samples, rest = divmod(recipe.global_batch_tokens, stage.seq_len)
            if rest or not samples:
                raise InputError(
                    f"recipe.global_batch_tokens={recipe.global_batch_tokens} is not a multiple "
                    f"of {key}.seq_len={stage.seq_len}."
                )
            steps = math.ceil(stage.tokens / recipe.global_batch_tokens)
            self.stages.append(
                Stage(
                    index,
                    name,
                    stage.seq_len,
                    first_step,
                    steps,
                    samples,
                    weights,
                    stage.rope_theta,
                    None
                    if stage.planned_tokens is None
                    else math.ceil(stage.planned_tokens / recipe.global_batch_tokens),
                )
            )
            first_step += steps
        self.total_steps = first_step

    def at(self, step: int) -> Stage:
        """The stage that step (counted from 0) belongs to."""
        return next(stage for stage in self.stages if step < stage.end_step)

    def position(self, step: int) -> tuple[int, int]:
        """Number of the stage and samples of it that are done after `step` steps."""
        stage = self.at(max(0, step - 1))
        return stage.index, (step - stage.first_step) * stage.samples_per_step

    def tokens_at(self, step: int) -> int:
        """Tokens consumed before step."""
        return step * self.global_batch_tokens

    @property
    def total_tokens(self) -> int:
        """Tokens of the whole plan, rounded up to whole steps in each stage."""
        return self.tokens_at(self.total_steps)
