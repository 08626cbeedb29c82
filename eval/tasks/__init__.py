"""Selects, builds, loads and scores lm-eval tasks, for any model."""
