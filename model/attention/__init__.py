"""Causal grouped-query attention: the mask and the backends that compute it."""
