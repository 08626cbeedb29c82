"""lm-eval tasks: choosing, building, loading and scoring them, for any model."""
