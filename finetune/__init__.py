"""Instruct tuning of an exported model."""
