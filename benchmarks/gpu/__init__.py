"""The parts of `benchmarks/gpu_session.py`, which measures everything that needs a GPU."""
