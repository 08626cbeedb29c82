"""Evaluation of a model while it trains; the only room of `eval` that `pretrain` imports."""
