"""Computes the learning rate from the number of consumed tokens, whatever the batch size."""

from __future__ import annotations

import math
from collections.abc import Callable

from data_pipeline.sampling.recipe import ScheduledStage, StagePlan
from pretrain.config import OptimConfig
from pretrain.recipe import training_config

SHAPES: dict[str, Callable[[float], float]] = {
    "cosine": lambda progress: (1 + math.cos(math.pi * progress)) / 2,
    "linear": lambda progress: 1 - progress,
    "sqrt": lambda progress: 1 - math.sqrt(progress),
    "constant": lambda progress: 1.0,
}
"""Curves that fall from 1 to 0 as progress goes from 0 to 1; `constant` stays at 1."""


def learning_rate(config: OptimConfig, plan: StagePlan, tokens: int) -> float:
    """Returns the learning rate of the step that ends at `tokens` consumed tokens.

    If the recipe sets a rate for the stage of this step, that rate applies. Otherwise, the schedule
    of `optim` over the whole plan applies.
    """
    stage = next(stage for stage in plan.stages if tokens <= stage.first_token + stage.tokens)
    rate, progress = (
        training_config(stage).learning_rate,
        (tokens - stage.first_token) / stage.tokens,
    )
    if rate.shape is None:
        return run_rate(config, tokens, plan.total_tokens)
    start = _rate_before(config, plan, stage) if rate.start is None else rate.start
    end = start if rate.end is None else rate.end
    return end + (start - end) * SHAPES[rate.shape](progress)


def _rate_before(config: OptimConfig, plan: StagePlan, stage: ScheduledStage) -> float:
    """Returns the rate at the end of the previous stage, or the peak rate for the first stage."""
    return learning_rate(config, plan, stage.first_token) if stage.index else config.learning_rate


def run_rate(config: OptimConfig, tokens: int, total_tokens: int) -> float:
    """Returns the rate that `optim` sets in a plan of `total_tokens`, ignoring rates of stages.

    It rises linearly from 0 over `warmup_tokens`, then follows `schedule` down to
    `min_learning_rate` at `total_tokens`. `cosine` is SGDR (arXiv 1608.03983). `wsd` is warm-up,
    stable, decay (arXiv 2404.06395), and decays over the last `decay_tokens`. Of its decay shapes,
    1 - sqrt was best in arXiv 2405.18392.
    """
    if tokens < config.warmup_tokens:
        return config.learning_rate * tokens / config.warmup_tokens
    start, shape = config.warmup_tokens, config.schedule
    if shape == "constant":
        return config.learning_rate
    if shape == "wsd":
        start, shape = max(start, total_tokens - config.decay_tokens), config.decay_shape
    progress = (tokens - start) / max(1, total_tokens - start)
    falling = SHAPES[shape](min(1.0, max(0.0, progress)))
    return config.min_learning_rate + (config.learning_rate - config.min_learning_rate) * falling
