"""Rotary position embedding (arXiv 2104.09864) in the half-split layout of Llama's checkpoints."""

from __future__ import annotations

import torch
from torch import Tensor


def rope_table(
    positions: Tensor, head_dim: int, theta: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Returns the cosines and sines of positions (seq,), each (seq, head_dim).

    The values are computed in float32 and rounded to `dtype`. `theta` is the RoPE base.
    """
    pairs = torch.arange(0, head_dim, 2, dtype=torch.int64, device=positions.device)
    inverse_frequencies = 1.0 / (theta ** (pairs.float() / head_dim))
    angles = torch.outer(positions.float(), inverse_frequencies)
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos().to(dtype), angles.sin().to(dtype)


def apply_rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Returns x (batch, seq, heads, head_dim) rotated by cos and sin (seq, head_dim)."""
    first, second = x.chunk(2, dim=-1)
    rotated = torch.cat((-second, first), dim=-1)
    return x * cos[:, None, :] + rotated * sin[:, None, :]
