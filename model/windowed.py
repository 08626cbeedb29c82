"""Sliding-window attention in blocks of queries, as plain matrix products: its cost and memory grow
linearly with the sequence at a fixed window. For CPUs, where torch's kernel computes what a mask
hides and its backward pass does not use the matrix products of bf16.

A block of C queries sees its own C keys and those of the blocks before it that the window reaches
into, so that all blocks have one shape and are one batch (the blocks of Longformer, arXiv
2004.05150).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

QUERIES_AT_LEAST = 64
"""A block's: smaller products are slower."""


def block_sizes(window: int) -> tuple[int, int]:
    """Queries of a block, and the blocks before it that it sees: at most a quarter of a window is
    computed beyond it (of windows of 256 and more), and a key is copied five times."""
    queries = max(QUERIES_AT_LEAST, -(-window // 4))
    return queries, -(-(window - 1) // queries)


def hidden_in_blocks(document: Tensor, window: int, start: int, end: int, first_key: int) -> Tensor:
    """Which keys the queries at positions [start, end) do not see, (batch, blocks, queries, keys)
    bool. document: number of each token's document, (batch, seq)."""
    size, before = block_sizes(window)
    extra = -(end - start) % size
    back = before * size
    query = document[:, start:end]
    query = F.pad(query, (0, extra), value=-1).unflatten(1, (-1, size))
    # What is before the keys or after the queries is of no document; -2 is not -1.
    key = F.pad(document[:, first_key:end], (back - (start - first_key), extra), value=-2)
    key = key.unfold(1, back + size, size)
    distance = torch.arange(size)[:, None] + back - torch.arange(back + size)[None]
    distance = distance.to(document.device)
    return (query[..., None] != key[:, :, None]) | (distance < 0) | (distance >= window)


def attend_blocks(q: Tensor, k: Tensor, v: Tensor, window: int, hidden: Tensor) -> Tensor:
    """q (batch, queries, heads, head_dim), k and v (batch, keys, kv_heads, head_dim) that end at
    the same token, hidden of `hidden_in_blocks` -> (batch, queries, heads, head_dim)."""
    batch, queries, heads, head_dim = q.shape
    kv_heads = k.shape[2]
    size, before = block_sizes(window)
    extra = -queries % size
    # (batch, blocks, kv_heads, heads of one kv_head * queries of a block, head_dim)
    q = F.pad(q * head_dim**-0.5, (0, 0, 0, 0, 0, extra))
    q = q.view(batch, -1, size, kv_heads, heads // kv_heads, head_dim)
    q = q.permute(0, 1, 3, 4, 2, 5).flatten(3, 4)
    front = before * size - (k.shape[1] - queries)
    k, v = (_with_blocks_before(x, size, before, front, extra) for x in (k, v))
    scores = (q @ k.transpose(-1, -2)).unflatten(3, (-1, size))
    scores = scores.masked_fill(hidden[:, :, None, None], torch.finfo(q.dtype).min)
    out = scores.softmax(-1).flatten(3, 4) @ v
    out = out.unflatten(3, (-1, size)).permute(0, 1, 4, 2, 3, 5)
    return out.reshape(batch, -1, heads, head_dim)[:, :queries]


def _with_blocks_before(x: Tensor, size: int, before: int, front: int, extra: int) -> Tensor:
    """x (batch, keys, kv_heads, head_dim) -> (batch, blocks, kv_heads, keys of a block,
    head_dim)."""
    x = F.pad(x, (0, 0, 0, 0, front, extra)).unflatten(1, (-1, size))
    blocks = x.shape[1] - before
    windows = [x[:, shift : shift + blocks] for shift in range(before + 1)]
    return torch.cat(windows, 2).transpose(2, 3)
