"""Checkpoints of other trainers: which can become a Hugging Face folder, and why others cannot."""
