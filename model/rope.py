"""Rotary position embedding (arXiv 2104.09864) in the half-split layout of transformers."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from model.rope_scaling import Rope, RopeScaling


def rope_table(
    positions: Tensor, head_dim: int, rope: Rope, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Returns the cosines and sines of positions (seq,), each (seq, head_dim).

    The values are computed in float32 and rounded to `dtype`.
    """
    pairs = torch.arange(0, head_dim, 2, dtype=torch.int64, device=positions.device)
    frequencies = 1.0 / (rope.theta ** (pairs.float() / head_dim))
    if rope.scaling is not None:
        frequencies = scaled_frequencies(frequencies, rope.theta, rope.scaling)
    angles = torch.outer(positions.float(), frequencies)
    angles = torch.cat((angles, angles), dim=-1)
    cos, sin = angles.cos(), angles.sin()
    if rope.scaling is not None and (factor := attention_factor(rope.scaling)) != 1:
        cos, sin = cos * factor, sin * factor
    return cos.to(dtype), sin.to(dtype)


def scaled_frequencies(frequencies: Tensor, theta: float, scaling: RopeScaling) -> Tensor:
    """Returns scaled frequencies (head_dim / 2,), in radians per position."""
    if scaling.type == "linear":
        return frequencies / scaling.factor
    length = scaling.original_max_seq_len
    assert length is not None
    if scaling.type == "llama3":
        low, high = scaling.low_freq_factor, scaling.high_freq_factor
        rotations = length / (2 * math.pi / frequencies)
        kept = ((rotations - low) / (high - low)).clamp(0, 1)
    else:
        kept = 1 - _yarn_ramp(frequencies, theta, length, scaling)
    return (1 - kept) * frequencies / scaling.factor + kept * frequencies


def _yarn_ramp(frequencies: Tensor, theta: float, length: int, scaling: RopeScaling) -> Tensor:
    """Returns how much each frequency is divided, from 0 (high) to 1 (low)."""
    pairs = len(frequencies)

    def pair_of(rotations: float) -> float:
        """Returns the pair that rotates so often within the original positions."""
        return pairs * math.log(length / (rotations * 2 * math.pi)) / math.log(theta)

    first, last = pair_of(scaling.beta_fast), pair_of(scaling.beta_slow)
    if scaling.truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, 2 * pairs - 1)
    if first == last:
        last += 0.001  # a step instead of a ramp
    index = torch.arange(pairs, dtype=torch.float32, device=frequencies.device)
    return ((index - first) / (last - first)).clamp(0, 1)


def attention_factor(scaling: RopeScaling) -> float:
    """Returns the factor of cosines and sines, which scales the attention scores by its square."""
    if scaling.type != "yarn":
        return 1.0
    if scaling.attention_factor is not None:
        return scaling.attention_factor
    return 0.1 * math.log(scaling.factor) + 1.0


def apply_rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Returns x (batch, seq, heads, head_dim) rotated by cos and sin (seq, head_dim)."""
    first, second = x.chunk(2, dim=-1)
    rotated = torch.cat((-second, first), dim=-1)
    return x * cos[:, None, :] + rotated * sin[:, None, :]
