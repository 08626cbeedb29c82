"""Evaluation of a model while it trains."""
