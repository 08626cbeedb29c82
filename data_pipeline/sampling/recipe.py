"""The configuration of a recipe, and the plan of steps and samples that is computed from it.

The plan tells which stage a step belongs to and which samples of the stage it takes. Sequence
lengths and batch sizes are checked here (`_check_stage`) as far as that is possible without a
model; `pretrain.checks.check_stages` checks what depends on the model, layout and hardware.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from conf.errors import InputError, first_line, one_of
from data_pipeline.sampling.fim import FimConfig, active, check_sources
from data_pipeline.sampling.stage import Stage
from data_pipeline.sampling.stage_sources import (
    LATEST,
    SourceTokens,
    stage_editions,
    stage_weights,
)

DOCUMENTS = ("separate", "joined")
"""Values of the key `documents` of a stage; the first is the default."""
TRAINING_KEYS = ("rope_theta", "rope_scaling", "learning_rate", "precision")
"""Keys of a stage that `pretrain.recipe` adds, and that do not affect the order of samples."""


@dataclass
class BatchRamp:
    """Configuration of smaller batches at the beginning of a stage.

    start: Tokens in the first batch; 0 for no ramp.
    increment: Tokens by which the batch grows each time, until it has the size of the stage.
    tokens: Tokens in the whole ramp. Every batch size gets an equal share of them.
    """

    start: int = 0
    increment: int = 0
    tokens: int = 0


@dataclass
class StageConfig:
    """Configuration of one stage of a recipe, with only the keys that concern the data.

    seq_len: Sequence length in tokens.
    tokens: Tokens to train on, rounded up to whole steps.
    mixture: Weight per source, which need not sum to 1. If empty, sources are weighted by size.
    planned_tokens: Original `tokens` of a stage that is ended early to change the following stages;
        else null.
    global_batch_tokens: Tokens per optimizer step; null uses that of the recipe.
    batch_ramp: Smaller batches at the beginning of the stage.
    documents: separate if tokens attend to their own document only; joined if they also attend to
        the earlier documents of their sample, so that attention is plain causal.
    edition: Edition of the corpus that the stage reads: its number, counted from 1, or latest for
        the newest one when the stage is planned. null for that of the stage before; the first
        stage reads the newest edition at the first start of the run.
    source_tokens: Training tokens per source that a stage of a trunk read in another corpus than
        that of its branch. Set by branch_from; else empty.
    """

    seq_len: int = MISSING
    tokens: int = MISSING
    mixture: dict[str, float] = field(default_factory=dict)
    planned_tokens: int | None = None
    global_batch_tokens: int | None = None
    batch_ramp: BatchRamp = field(default_factory=BatchRamp)
    documents: str = DOCUMENTS[0]
    edition: Any = None
    fim: dict[str, FimConfig] = field(default_factory=dict)
    source_tokens: dict[str, int] = field(default_factory=dict)


@dataclass
class RecipeConfig:
    """Configuration of a recipe.

    name: Name of the recipe.
    global_batch_tokens: Tokens per optimizer step at every sequence length, unless a stage sets
        its own.
    stages: Stages by name, in the order in which they run.
    atom_tokens: Length in tokens of the units that the order of samples permutes, a multiple of
        every seq_len; null uses the longest seq_len. Set it if a stage with longer sequences may be
        added after the run has started.
    inherited: Number of first stages that a branch has from its trunk and does not train itself.
        Set by branch_from; else 0.
    """

    name: str = MISSING
    global_batch_tokens: int = MISSING
    stages: dict[str, StageConfig] = field(default_factory=dict)
    atom_tokens: int | None = None
    inherited: int = 0

    def __post_init__(self) -> None:
        if not self.stages:
            raise InputError("recipe.stages is empty. Add at least one stage.")
        for name, stage in self.stages.items():
            _check_stage(self, f"recipe.stages.{name}", stage)


def _check_stage(recipe: RecipeConfig, key: str, stage: StageConfig) -> None:
    """Raises InputError if a setting of a stage is invalid, or does not fit the other settings."""
    _check_positive(stage, key, ("seq_len", "tokens"))
    one_of(f"{key}.documents", stage.documents, DOCUMENTS)
    edition = stage.edition
    if edition not in (None, LATEST) and (type(edition) is not int or edition < 1):
        raise InputError(
            f"{key}.edition={edition}: expected the number of an edition, latest or null. "
            "Editions are counted from 1."
        )
    if stage.planned_tokens is not None and stage.planned_tokens < stage.tokens:
        raise InputError(
            f"{key}.planned_tokens={stage.planned_tokens}: expected {key}.tokens={stage.tokens} or "
            "more. Set planned_tokens only for a stage that is ended early."
        )
    for source, fim in stage.fim.items():
        fim.check(f"{key}.fim.{source}")
    owner = "recipe" if stage.global_batch_tokens is None else key
    batch = _batch_tokens(recipe, stage)
    if batch < stage.seq_len or batch % stage.seq_len:
        raise InputError(
            f"{owner}.global_batch_tokens={batch}: expected a multiple of "
            f"{key}.seq_len={stage.seq_len}. Change one of them."
        )
    ramp = stage.batch_ramp
    if ramp == BatchRamp():
        return
    _check_positive(ramp, f"{key}.batch_ramp", ("start", "increment", "tokens"))
    sizes = _ramp_sizes(recipe, stage)
    if not sizes or sizes[-1] + ramp.increment != batch:
        raise InputError(
            f"{key}.batch_ramp: steps of increment={ramp.increment} from start={ramp.start} do not "
            f"reach {owner}.global_batch_tokens={batch}. Change one of these keys."
        )
    for size in sizes:
        if size % stage.seq_len:
            raise InputError(
                f"{key}.batch_ramp: a batch of {size} tokens is not a multiple of "
                f"{key}.seq_len={stage.seq_len}. Change start or increment."
            )


def _check_positive(config: object, key: str, names: tuple[str, ...]) -> None:
    for name in names:
        if getattr(config, name) < 1:
            raise InputError(f"{key}.{name}={getattr(config, name)}: expected 1 or more.")


def _batch_tokens(recipe: RecipeConfig, stage: StageConfig) -> int:
    return stage.global_batch_tokens or recipe.global_batch_tokens


def _ramp_sizes(recipe: RecipeConfig, stage: StageConfig) -> list[int]:
    """Returns the batch sizes of the ramp in tokens, without the final size of the stage."""
    ramp = stage.batch_ramp
    return list(range(ramp.start, _batch_tokens(recipe, stage), ramp.increment))


@dataclass(frozen=True, kw_only=True)
class ScheduledStage(Stage):
    """A stage with its position in the plan: the steps [first_step, end_step).

    Attributes:
        index: Number of the stage, counted from 0.
        name: Name in the recipe.
        config: Configuration of the stage.
        first_step: First step, counted from 0.
        steps: Number of steps.
        first_token: Number of tokens in all earlier stages.
        edition: Number of the edition of the corpus that the stage reads, counted from 1.
    """

    index: int
    name: str
    config: StageConfig
    first_step: int
    steps: int
    first_token: int
    edition: int = 1

    @property
    def joins_documents(self) -> bool:
        """True if tokens also attend to the earlier documents of their sample."""
        return self.config.documents == "joined"

    @property
    def end_step(self) -> int:
        """The first step after the stage."""
        return self.first_step + self.steps


@dataclass(frozen=True)
class Level:
    """Consecutive steps of a stage with the same batch size.

    Attributes:
        stage: Index of the stage.
        first_step: First step, counted from 0.
        steps: Number of steps.
        first_sample: First sample, counted from the start of the stage.
        samples_per_step: Number of samples per step.
        first_token: Number of tokens in all earlier levels.
        tokens_per_step: Number of tokens per step.
    """

    stage: int
    first_step: int
    steps: int
    first_sample: int
    samples_per_step: int
    first_token: int
    tokens_per_step: int


class StagePlan:
    """The stages of a recipe for a corpus, in steps and samples.

    Args:
        recipe: The recipe.
        source_tokens: Training tokens per source, or those of each edition of the corpus. Without
            editions, the key `edition` of the stages has no effect.

    Raises:
        InputError: A mixture names an unknown source, or has no weight above 0, or a stage reads
            an edition that does not exist or is earlier than that of the stage before, or has `fim`
            for a source that is not in its mixture.
    """

    def __init__(self, recipe: RecipeConfig, source_tokens: SourceTokens) -> None:
        self.name = recipe.name
        asked = {n: s.edition for n, s in recipe.stages.items() if not s.source_tokens}
        editions = stage_editions(asked, source_tokens)
        for name, config in recipe.stages.items():
            if config.source_tokens:  # read in another corpus, before the run branched
                editions[name] = (
                    config.edition or editions[next(iter(asked))][0],
                    config.source_tokens,
                )
        self.source_tokens = dict(editions[next(iter(recipe.stages))][1])
        """Training tokens per source in the edition that the first stage reads."""
        self.stages: list[ScheduledStage] = []
        self.levels: list[Level] = []
        step = token = 0
        for index, (name, config) in enumerate(recipe.stages.items()):
            seq_len, planned = config.seq_len, config.planned_tokens
            levels = _spend(recipe, config, config.tokens)
            edition, tokens = editions[name]
            key = f"recipe.stages.{name}"
            weights = stage_weights(key, config.mixture, tokens, source_tokens)
            check_sources(key, config.fim, weights)
            stage = ScheduledStage(
                seq_len=seq_len,
                samples=_samples(levels, seq_len),
                weights=weights,
                planned_samples=planned and _samples(_spend(recipe, config, planned), seq_len),
                source_tokens=dict(tokens) if tokens != self.source_tokens else None,
                fim=active(config.fim),
                edition=edition,
                index=index,
                name=name,
                config=config,
                first_step=step,
                steps=sum(steps for steps, _ in levels),
                first_token=token,
            )
            self.stages.append(stage)
            sample = 0
            for steps, batch in levels:
                each = batch // seq_len
                self.levels.append(Level(index, step, steps, sample, each, token, batch))
                step, sample, token = step + steps, sample + steps * each, token + steps * batch
        self.total_steps = step
        self.total_tokens = token
        """Tokens of the whole plan, rounded up to whole steps in each stage."""
        self.own_stages = self.stages[recipe.inherited :]
        """The stages that the run trains itself: all, unless it is a branch."""
        self.own_levels = [level for level in self.levels if level.stage >= recipe.inherited]
        self._first_steps = [level.first_step for level in self.levels]

    def at(self, step: int) -> ScheduledStage:
        """Returns the stage that a step, counted from 0, belongs to."""
        return self.stages[self.level(step).stage]

    def level(self, step: int) -> Level:
        """Returns the level that a step belongs to."""
        return self.levels[bisect_right(self._first_steps, step) - 1]

    def samples_at(self, step: int) -> range:
        """Returns the samples that a step takes, counted from the start of its stage."""
        level = self.level(step)
        first = level.first_sample + (step - level.first_step) * level.samples_per_step
        return range(first, first + level.samples_per_step)

    def batch_tokens(self, step: int) -> int:
        """Returns the number of tokens in a step."""
        return self.level(step).tokens_per_step

    @property
    def batches(self) -> list[int]:
        """The distinct batch sizes in tokens, in ascending order."""
        return sorted({level.tokens_per_step for level in self.levels})

    def position(self, step: int) -> tuple[int, int]:
        """Returns the stage index after `step` steps, and the number of samples completed in it."""
        if not step:
            return 0, 0
        return self.at(step - 1).index, self.samples_at(step - 1).stop

    def step_of(self, stage: int, sample: int) -> int:
        """Returns the step that takes a sample of a stage."""
        level = next(
            level
            for level in reversed(self.levels)
            if level.stage == stage and level.first_sample <= sample
        )
        return level.first_step + (sample - level.first_sample) // level.samples_per_step

    def tokens_at(self, step: int) -> int:
        """Returns the number of tokens consumed before a step."""
        level = self.level(step)
        return level.first_token + (step - level.first_step) * level.tokens_per_step


def plan_from_mapping(recipe: Mapping[str, Any], source_tokens: SourceTokens) -> StagePlan:
    """Returns the plan of a recipe given as plain data, such as the content of a config.yaml.

    Raises:
        InputError: The recipe has unknown or missing keys, or is inconsistent.
    """
    given: dict[Any, Any] = {"name": "recipe"} | {key: recipe[key] for key in recipe}
    if isinstance(stages := given.get("stages"), Mapping):
        given["stages"] = {name: _without_training_keys(stages[name]) for name in stages}
    try:
        merged = OmegaConf.merge(OmegaConf.structured(RecipeConfig), given)
        config: Any = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        raise InputError(
            f"recipe: {first_line(error)}. Give global_batch_tokens, and stages with seq_len and "
            "tokens, as in conf/recipe."
        ) from None
    return StagePlan(config, source_tokens)


def _without_training_keys(stage: Any) -> Any:
    if not isinstance(stage, Mapping):
        return stage  # OmegaConf refuses it with a message
    return {key: stage[key] for key in stage if key not in TRAINING_KEYS}


def _spend(recipe: RecipeConfig, config: StageConfig, tokens: int) -> list[tuple[int, int]]:
    """Returns (steps, batch tokens) for each level, rounding each level up to whole steps."""
    levels = []
    if config.batch_ramp.start:
        sizes = _ramp_sizes(recipe, config)
        share = config.batch_ramp.tokens // len(sizes)
        for batch in sizes:
            steps = math.ceil(min(share, tokens) / batch)
            levels.append((steps, batch))
            tokens = max(0, tokens - steps * batch)
    batch = _batch_tokens(recipe, config)
    levels.append((math.ceil(tokens / batch), batch))
    return [(steps, batch) for steps, batch in levels if steps]


def _samples(levels: list[tuple[int, int]], seq_len: int) -> int:
    return sum(steps * batch for steps, batch in levels) // seq_len
