"""Evaluation of a model while it trains; the only part of `eval` that `pretrain` imports."""
