"""Evaluation during training. It is the only part of `eval` that `pretrain` imports."""
