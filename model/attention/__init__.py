"""Causal grouped-query attention.

`mask.py` decides which keys a query sees. `backends.py` computes attention under that mask, with
one function per backend. `windowed.py` and `flex.py` contain the two longest backends.
"""
