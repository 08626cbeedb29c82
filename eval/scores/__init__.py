"""Scores of exported models: lm-eval, perplexity, comparisons and published tables."""
