"""Megatron-core's writer of `.bin`/`.idx`, imported without its page of warnings.

A module of its own, because the import takes seconds: the server that forks the writing processes
loads it once for all of them.
"""

from __future__ import annotations

import logging
import warnings

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    from megatron.core.datasets.indexed_dataset import DType, IndexedDatasetBuilder

    logging.disable(logging.NOTSET)

__all__ = ["DType", "IndexedDatasetBuilder"]
