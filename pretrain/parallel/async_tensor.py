"""Asynchronous tensor parallelism, which overlaps communication with matrix products.

torch.compile splits each matrix product into one part per rank, and transfers one part while it
multiplies another. The transfers use symmetric memory, which the GPUs of a node can share.
"""

from __future__ import annotations

import torch


def apply_async_tensor_parallel() -> None:
    """Enables asynchronous TP in the compiler. It must be called before anything is compiled."""
    torch._inductor.config._micro_pipeline_tp = True
