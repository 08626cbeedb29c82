"""Learning rate by tokens: the same curve whatever the batch size."""

from __future__ import annotations

import math
from collections.abc import Callable

from pretrain.config import OptimConfig

SHAPES: dict[str, Callable[[float], float]] = {
    "cosine": lambda progress: (1 + math.cos(math.pi * progress)) / 2,
    "linear": lambda progress: 1 - progress,
    "sqrt": lambda progress: 1 - math.sqrt(progress),
}
"""From 1 to 0 over a progress from 0 to 1."""


def learning_rate(config: OptimConfig, tokens: int, total_tokens: int) -> float:
    """The rate for the step that ends at `tokens` consumed tokens.

    Linear from 0 over `warmup_tokens`, then `schedule` down to `min_learning_rate` at
    `total_tokens`. cosine: SGDR, arXiv 1608.03983; wsd: warm-up, stable, decay over the last
    `decay_tokens`, arXiv 2404.06395, with the decay of `decay_shape`, of which 1 - sqrt did best
    in arXiv 2405.18392.
    """
    if tokens < config.warmup_tokens:
        return config.learning_rate * tokens / config.warmup_tokens
    if config.schedule == "constant":
        return config.learning_rate
    start, shape = config.warmup_tokens, SHAPES.get(config.schedule)
    if shape is None:
        start = max(start, total_tokens - config.decay_tokens)
        shape = SHAPES[config.decay_shape]
    progress = (tokens - start) / max(1, total_tokens - start)
    shape_now = shape(min(1.0, max(0.0, progress)))
    return config.min_learning_rate + (config.learning_rate - config.min_learning_rate) * shape_now
