"""Learning rate by tokens: the same curve whatever the batch size."""

from __future__ import annotations

import math

from pretrain.config import OptimConfig


def learning_rate(config: OptimConfig, tokens: int, total_tokens: int) -> float:
    """The rate for the step that ends at `tokens` consumed tokens.

    Linear from 0 over `warmup_tokens`, then `schedule` down to `min_learning_rate` at
    `total_tokens` (cosine: SGDR, arXiv 1608.03983).
    """
    if tokens < config.warmup_tokens:
        return config.learning_rate * tokens / config.warmup_tokens
    if config.schedule == "constant":
        return config.learning_rate
    left = max(1, total_tokens - config.warmup_tokens)
    progress = min(1.0, (tokens - config.warmup_tokens) / left)
    shape = 1 - progress if config.schedule == "linear" else (1 + math.cos(math.pi * progress)) / 2
    return config.min_learning_rate + (config.learning_rate - config.min_learning_rate) * shape
