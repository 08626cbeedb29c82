"""Causal grouped-query attention.

`mask.py` decides which keys a query sees. `backends.py` computes attention under that mask, with
one function per backend. The two longer backends are in `windowed.py` and `flex.py`.
"""
