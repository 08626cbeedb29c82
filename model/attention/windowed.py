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


def groups(queries: int, keys_before: int, window: int) -> list[tuple[int, int, int]]:
    """(first block, end, blocks of keys that each of them sees): those at the start of a sequence
    have fewer keys, and are computed one by one; all others together."""
    size, before = block_sizes(window)
    blocks, at_hand = -(-queries // size), -(-keys_before // size)
    alone = min(blocks, max(0, before - at_hand))
    found = [(block, block + 1, at_hand + block + 1) for block in range(alone)]
    return found + ([(alone, blocks, before + 1)] if alone < blocks else [])


def hidden_in_blocks(
    document: Tensor, window: int, start: int, end: int, first_key: int
) -> list[Tensor]:
    """Which keys the queries at positions [start, end) do not see, of each group (batch, blocks,
    queries, keys) bool. document: number of each token's document, (batch, seq)."""
    size, _ = block_sizes(window)
    query = _in_blocks(document[:, start:end], size, 0, -(end - start) % size, value=-1)
    # What is before the keys or after the queries is of no document; -2 is not -1.
    front = -(start - first_key) % size
    key = _in_blocks(document[:, first_key:end], size, front, -(end - start) % size, value=-2)
    found = []
    for first, last, seen in groups(end - start, start - first_key, window):
        seen_keys = _last(key, query.shape[1], first, last, seen)
        own = torch.arange(size, device=document.device)
        distance = own[:, None] + (seen - 1) * size - torch.arange(seen * size).to(own.device)
        other = query[:, first:last, :, None] != seen_keys[:, :, None]
        found.append(other | (distance < 0) | (distance >= window))
    return found


def attend_blocks(q: Tensor, k: Tensor, v: Tensor, window: int, hidden: list[Tensor]) -> Tensor:
    """q (batch, queries, heads, head_dim), k and v (batch, keys, kv_heads, head_dim) that end at
    the same token, hidden of `hidden_in_blocks` -> (batch, queries, heads, head_dim)."""
    batch, queries, heads, head_dim = q.shape
    kv_heads = k.shape[2]
    size, _ = block_sizes(window)
    extra, before = -queries % size, k.shape[1] - queries
    # (batch, blocks, kv_heads, heads of one kv_head * queries of a block, head_dim)
    q = _in_blocks(q * head_dim**-0.5, size, 0, extra)
    blocks = q.shape[1]
    q = q.unflatten(3, (kv_heads, -1)).permute(0, 1, 3, 4, 2, 5).flatten(3, 4)
    k, v = (_in_blocks(x, size, -before % size, extra) for x in (k, v))
    parts = []
    for (first, last, seen), unseen in zip(groups(queries, before, window), hidden, strict=True):
        # (batch, blocks, kv_heads, keys of a block, head_dim)
        keys, values = (_last(x, blocks, first, last, seen).transpose(2, 3) for x in (k, v))
        scores = (q[:, first:last] @ keys.transpose(-1, -2)).unflatten(3, (-1, size))
        scores = scores.masked_fill(unseen[:, :, None, None], torch.finfo(q.dtype).min)
        parts.append(scores.softmax(-1).flatten(3, 4) @ values)
    out = torch.cat(parts, 1).unflatten(3, (-1, size)).permute(0, 1, 4, 2, 3, 5)
    return out.reshape(batch, -1, heads, head_dim)[:, :queries]


def _in_blocks(x: Tensor, size: int, front: int, extra: int, value: float = 0) -> Tensor:
    """x (batch, tokens, ...) -> (batch, blocks, size, ...), with `front` tokens before and `extra`
    after."""
    if front or extra:
        x = F.pad(x, (0, 0) * (x.dim() - 2) + (front, extra), value=value)
    return x.unflatten(1, (-1, size))


def _last(x: Tensor, blocks: int, first: int, last: int, seen: int) -> Tensor:
    """Of key blocks x (batch, key blocks, size, ...), of which the last `blocks` are those of the
    queries: what each of the query blocks [first, last) sees, (batch, last - first, seen * size,
    ...)."""
    until = x.shape[1] - blocks + first + 1
    if last - first == 1:  # no copy
        return x[:, until - seen : until].flatten(1, 2)[:, None]
    shifts = range(until - seen, until)
    return torch.cat([x[:, shift : shift + last - first] for shift in shifts], 2)
