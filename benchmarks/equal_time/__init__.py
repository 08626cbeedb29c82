"""Sides of `benchmarks/loss_at_equal_time.py`: the trainers that are compared."""
