"""Pretraining: the training loop, which runs on a device mesh, and everything around it."""
