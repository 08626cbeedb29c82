"""Checks of what fp8 matrix products need: a package, a GPU, and sizes."""

from __future__ import annotations

import importlib.util

from conf.errors import InputError
from model.config import ModelConfig

FP8_MULTIPLE = 16
"""Number by which `torch._scaled_mm` requires every side of a matrix to be divisible."""
FP8_CAPABILITY = (8, 9)
"""Compute capability of the first NVIDIA GPUs with fp8 matrix products (Ada)."""


def check_fp8_package(precision: str) -> None:
    """Raises InputError if the package for fp8 is missing."""
    if importlib.util.find_spec("torchao") is None:
        raise InputError(
            f"precision={precision}: requires the package torchao, which is not installed. Run pip "
            "install -c constraints.txt torchao, or use precision=bf16."
        )


def check_fp8_device(precision: str) -> None:
    """Raises InputError if this machine's GPU does not support fp8. A CPU emulates fp8."""
    import torch

    found = torch.cuda.get_device_capability()
    if torch.version.hip is None and found < FP8_CAPABILITY:
        raise InputError(
            f"precision={precision}: requires compute capability "
            f"{FP8_CAPABILITY[0]}.{FP8_CAPABILITY[1]} or more, but {torch.cuda.get_device_name()} "
            f"has {found[0]}.{found[1]}. Use precision=bf16."
        )


def check_fp8_sides(
    precision: str, model: ModelConfig, tp: int, cp: int, micro_batch_tokens: int | None
) -> None:
    """Raises InputError if a side of an fp8 matrix on a rank is not a multiple of FP8_MULTIPLE.

    Args:
        precision: fp8 or fp8_rowwise.
        model: The network.
        tp: Tensor-parallel ranks, which split the matrices.
        cp: Context-parallel ranks, which split the micro-batch.
        micro_batch_tokens: Tokens of a micro-batch, which are the inner side of the product for
            weight gradients; None if not known yet.
    """
    for key, size, split, parts in (
        ("model.hidden_size", model.hidden_size, "tp", 1),
        ("model.num_heads * head_dim", model.query_size, "tp", tp),
        ("model.num_kv_heads * head_dim", model.kv_size, "tp", tp),
        ("model.intermediate_size", model.intermediate_size, "tp", tp),
        ("tokens per micro-batch", micro_batch_tokens, "cp", cp),
    ):
        if size is not None and size % (FP8_MULTIPLE * parts):
            ranks = f" x parallel.{split}={parts}" if parts > 1 else ""
            raise InputError(
                f"precision={precision}: {key}={size} is not a multiple of {FP8_MULTIPLE}{ranks}. "
                f"Change {key}, or use precision=bf16."
            )
