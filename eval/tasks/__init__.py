"""Tasks of lm-eval: chosen, loaded, checked and built from held-out text."""
