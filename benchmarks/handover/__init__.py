"""Comparison of tools that read an export with transformers 5, on a model of each family."""
