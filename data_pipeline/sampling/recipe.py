"""A recipe, and the plan that follows from it in closed form: which stage a step belongs to, and
which samples of the stage it takes."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from conf.errors import InputError, did_you_mean, one_of
from data_pipeline.sampling.order import OrderStage


@dataclass
class BatchRamp:
    """Smaller batches at a stage's beginning: of `start` tokens, then `increment` more each time up
    to the stage's own, every size for an equal share of the stage's first `tokens`; 0 for none."""

    start: int = 0
    increment: int = 0
    tokens: int = 0


@dataclass
class StageRate:
    """The learning rate of a stage, in place of what `optim` would give it: from `start` to `end`
    over the stage's tokens.

    shape: constant, linear, cosine or sqrt (1 - sqrt of the progress); null for the run's rate.
    start: null for the rate at which the stage before ended. end: null where it is constant.
    """

    shape: str | None = None
    start: float | None = None
    end: float | None = None


@dataclass
class StageConfig:
    """One stage of a recipe: sequence length, token budget, and the sources' shares.

    mixture: weight of each source, normalised to 1; empty for the sources' own sizes.
    rope_theta: base of the rotary positions while this stage runs; null for the model's.
    planned_tokens: tokens that the stage had when it was begun, where it is ended early so that
        what comes next can change; null elsewhere.
    global_batch_tokens, precision: of this stage; null for the recipe's and the run's.
    """

    seq_len: int = MISSING
    tokens: int = MISSING
    mixture: dict[str, float] = field(default_factory=dict)
    rope_theta: float | None = None
    planned_tokens: int | None = None
    global_batch_tokens: int | None = None
    batch_ramp: BatchRamp = field(default_factory=BatchRamp)
    learning_rate: StageRate = field(default_factory=StageRate)
    precision: str | None = None


@dataclass
class RecipeConfig:
    """Stages by name, run in the order in which they are written.

    global_batch_tokens: tokens of one optimizer step, the same at every sequence length; a stage
        may set its own.
    atom_tokens: what the order of samples deals in, a multiple of every seq_len; null for the
        longest. Give it where longer stages may be added while the run is under way.
    """

    name: str = MISSING
    global_batch_tokens: int = MISSING
    stages: dict[str, StageConfig] = field(default_factory=dict)
    atom_tokens: int | None = None

    def __post_init__(self) -> None:
        if not self.stages:
            raise InputError("recipe.stages is empty: a recipe needs at least one stage.")
        for name, stage in self.stages.items():
            key = f"recipe.stages.{name}"
            _check_positive(stage, key, ("seq_len", "tokens"))
            if stage.rope_theta is not None and not stage.rope_theta > 0:
                raise InputError(
                    f"{key}.rope_theta={stage.rope_theta}, expected more than 0, or null for the "
                    "model's."
                )
            if stage.planned_tokens is not None and stage.planned_tokens < stage.tokens:
                raise InputError(
                    f"{key}.planned_tokens={stage.planned_tokens}, expected at "
                    f"least tokens={stage.tokens}: it is for a stage that is ended early."
                )
            if stage.batch_ramp != BatchRamp():
                _check_positive(
                    stage.batch_ramp, f"{key}.batch_ramp", ("start", "increment", "tokens")
                )
            _check_rate(stage.learning_rate, f"{key}.learning_rate")


def _check_positive(config: object, key: str, names: tuple[str, ...]) -> None:
    for name in names:
        if getattr(config, name) < 1:
            raise InputError(f"{key}.{name}={getattr(config, name)}, expected at least 1.")


def _check_rate(rate: StageRate, key: str) -> None:
    if rate.shape is None:
        if rate != StageRate():
            raise InputError(
                f"{key} has no shape: give {key}.shape, or neither start nor end of it."
            )
        return
    one_of(f"{key}.shape", rate.shape, ("constant", "linear", "cosine", "sqrt"))
    if (rate.end is None) != (rate.shape == "constant"):
        raise InputError(
            f"{key}.end={rate.end} with {key}.shape={rate.shape}: a constant rate has no end, "
            "every other shape needs one."
        )
    for name in ("start", "end"):
        if (value := getattr(rate, name)) is not None and value < 0:
            raise InputError(f"{key}.{name}={value}, expected 0 or more.")


@dataclass(frozen=True)
class Stage:
    """A stage in steps: `first_step` up to, not including, `first_step + steps`.

    samples: of the whole stage; planned_samples: when it was begun, where it is ended early.
    """

    index: int
    name: str
    seq_len: int
    first_step: int
    steps: int
    samples: int
    first_token: int
    weights: dict[str, float]
    config: StageConfig
    planned_samples: int | None = None

    @property
    def end_step(self) -> int:
        """The first step after the stage."""
        return self.first_step + self.steps

    @property
    def tokens(self) -> int:
        """Tokens of the stage, rounded up to whole steps."""
        return self.samples * self.seq_len

    @property
    def rope_theta(self) -> float | None:
        """Base of the rotary positions; None for the model's."""
        return self.config.rope_theta

    def order_stage(self) -> OrderStage:
        """The stage as the order of samples sees it."""
        return OrderStage(self.seq_len, self.samples, self.weights, self.planned_samples)


@dataclass(frozen=True)
class Level:
    """Steps of a stage that take equally many samples, from `first_step` and `first_sample` on."""

    stage: int
    first_step: int
    steps: int
    first_sample: int
    samples_per_step: int
    first_token: int
    tokens_per_step: int


class StagePlan:
    """The stages of a recipe on a corpus.

    source_tokens: training tokens of each source; raises InputError for a mixture that names
    another, or a batch that is not a whole number of sequences.
    """

    def __init__(self, recipe: RecipeConfig, source_tokens: Mapping[str, int]) -> None:
        self.name = recipe.name
        self.stages: list[Stage] = []
        self.levels: list[Level] = []
        step = token = 0
        for index, (name, config) in enumerate(recipe.stages.items()):
            key = f"recipe.stages.{name}"
            weights = _weights(config, key, source_tokens)
            batches = _batches(recipe, config, key)
            planned = config.planned_tokens
            dealt = _deal(batches, config.tokens)
            samples = sum(steps * batch for steps, batch in dealt) // config.seq_len
            begun = planned and sum(s * b for s, b in _deal(batches, planned)) // config.seq_len
            steps = sum(steps for steps, _ in dealt)
            self.stages.append(
                Stage(
                    index,
                    name,
                    config.seq_len,
                    step,
                    steps,
                    samples,
                    token,
                    weights,
                    config,
                    begun,
                )
            )
            sample = 0
            for steps, batch in dealt:
                each = batch // config.seq_len
                self.levels.append(Level(index, step, steps, sample, each, token, batch))
                step, sample, token = step + steps, sample + steps * each, token + steps * batch
        self.total_steps = step
        self.total_tokens = token
        """Tokens of the whole plan, rounded up to whole steps in each stage."""
        self._first_steps = [level.first_step for level in self.levels]

    def at(self, step: int) -> Stage:
        """The stage that step (counted from 0) belongs to."""
        return self.stages[self.level(step).stage]

    def level(self, step: int) -> Level:
        """The level that step belongs to."""
        return self.levels[bisect_right(self._first_steps, step) - 1]

    def samples_at(self, step: int) -> range:
        """Numbers, in its stage, of the samples that a step takes."""
        level = self.level(step)
        first = level.first_sample + (step - level.first_step) * level.samples_per_step
        return range(first, first + level.samples_per_step)

    def batch_tokens(self, step: int) -> int:
        """Tokens of a step."""
        return self.level(step).tokens_per_step

    @property
    def batches(self) -> list[int]:
        """The different sizes of a step in tokens, from small to large."""
        return sorted({level.tokens_per_step for level in self.levels})

    def position(self, step: int) -> tuple[int, int]:
        """Number of the stage and samples of it that are done after `step` steps."""
        if not step:
            return 0, 0
        return self.at(step - 1).index, self.samples_at(step - 1).stop

    def step_of(self, stage: int, sample: int) -> int:
        """The step that takes a sample of a stage."""
        level = next(
            level
            for level in reversed(self.levels)
            if level.stage == stage and level.first_sample <= sample
        )
        return level.first_step + (sample - level.first_sample) // level.samples_per_step

    def tokens_at(self, step: int) -> int:
        """Tokens consumed before step."""
        level = self.level(step)
        return level.first_token + (step - level.first_step) * level.tokens_per_step


def plan_of(recipe: Mapping[str, Any], source_tokens: Mapping[str, int]) -> StagePlan:
    """The plan of a recipe as a config states it; raises InputError where it does not fit."""
    try:
        named: dict[Any, Any] = {"name": "recipe"} | dict(recipe)
        stated = OmegaConf.merge(OmegaConf.structured(RecipeConfig), named)
        config: Any = OmegaConf.to_object(stated)
    except OmegaConfBaseException as error:
        raise InputError(
            f"recipe does not fit: {str(error).splitlines()[0]}: expected global_batch_tokens, and "
            "stages with seq_len and tokens, as in conf/recipe."
        ) from None
    return StagePlan(config, source_tokens)


def _weights(config: StageConfig, key: str, source_tokens: Mapping[str, int]) -> dict[str, float]:
    """Weights of the sources in a stage."""
    for source, weight in config.mixture.items():
        if source not in source_tokens:
            raise InputError(
                f"{key}.mixture names the source '{source}', which the corpus does not "
                f"have{did_you_mean(source, source_tokens)}."
            )
        if weight < 0:
            raise InputError(f"{key}.mixture.{source}={weight}, expected 0 or more.")
    weights = dict(config.mixture) or {s: float(t) for s, t in source_tokens.items()}
    if sum(weights.values()) <= 0:
        raise InputError(f"{key}.mixture has no weight above 0: no source is left.")
    return weights


def _batches(recipe: RecipeConfig, config: StageConfig, key: str) -> list[tuple[int, int]]:
    """(batch, tokens to spend with it) of a stage's ramp, then its own batch without an end."""
    owner = "recipe" if config.global_batch_tokens is None else key
    full = config.global_batch_tokens or recipe.global_batch_tokens
    if full < config.seq_len or full % config.seq_len:
        raise InputError(
            f"{owner}.global_batch_tokens={full} is not a multiple of "
            f"{key}.seq_len={config.seq_len}."
        )
    ramp = config.batch_ramp
    if not ramp.start:
        return [(full, 0)]
    sizes = list(range(ramp.start, full, ramp.increment))
    if not sizes or sizes[-1] + ramp.increment != full:
        raise InputError(
            f"{key}.batch_ramp goes from {ramp.start} by {ramp.increment}, which does not come to "
            f"{owner}.global_batch_tokens={full}: change one of them."
        )
    for size in sizes:
        if size % config.seq_len:
            raise InputError(
                f"{key}.batch_ramp has a batch of {size} tokens, which is not a multiple of "
                f"{key}.seq_len={config.seq_len}."
            )
    return [(size, ramp.tokens // len(sizes)) for size in sizes] + [(full, 0)]


def _deal(batches: list[tuple[int, int]], tokens: int) -> list[tuple[int, int]]:
    """(steps, batch) of each level: a budget of tokens spent level by level in whole steps."""
    dealt = []
    for batch, share in batches[:-1]:
        steps = math.ceil(min(share, tokens) / batch)
        dealt.append((steps, batch))
        tokens = max(0, tokens - steps * batch)
    dealt.append((math.ceil(tokens / batches[-1][0]), batches[-1][0]))
    return [(steps, batch) for steps, batch in dealt if steps]
