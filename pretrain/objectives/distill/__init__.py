"""Distillation: the student learns from the answers of a teacher to the same tokens."""
