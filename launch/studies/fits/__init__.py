"""Fits of studies: mathematics only, without files or processes."""
