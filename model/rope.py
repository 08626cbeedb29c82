"""Rotary position embedding (arXiv 2104.09864), in the half-split layout of Llama's checkpoints."""

from __future__ import annotations

import torch
from torch import Tensor


def rope_table(
    seq_len: int, head_dim: int, theta: float, device: torch.device, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Cosines and sines of every position, each (seq, head_dim), computed in float32."""
    exponents = torch.arange(0, head_dim, 2, dtype=torch.int64, device=device).float() / head_dim
    inverse_frequencies = 1.0 / (theta**exponents)
    angles = torch.outer(torch.arange(seq_len, device=device).float(), inverse_frequencies)
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos().to(dtype), angles.sin().to(dtype)


def apply_rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotates x (batch, seq, heads, head_dim) by its positions; cos, sin (seq, head_dim)."""
    first, second = x.chunk(2, dim=-1)
    rotated = torch.cat((-second, first), dim=-1)
    return x * cos[:, None, :] + rotated * sin[:, None, :]
