"""The backend `blocks`: sliding-window attention as plain matrix products over blocks of queries.

For a fixed window, its cost and memory grow linearly with the sequence length. It is meant for
CPUs, where torch's attention kernel also computes masked-out scores, and where its backward pass
does not use bf16 matrix products.

A block of C queries sees its own C keys and those of the preceding blocks that the window reaches
into. Most blocks therefore have the same shape and form one batch (as in Longformer, arXiv
2004.05150). The first blocks of a sequence have fewer keys, and are computed one by one.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

MIN_BLOCK_QUERIES = 64
"""Minimum number of queries per block; smaller matrix products are slower."""


def block_sizes(window: int) -> tuple[int, int]:
    """Returns the number of queries per block, and of preceding blocks that a block sees.

    For windows of 256 or more, the scores of each query cover about 1.25 windows, and each key is
    copied five times.
    """
    queries = max(MIN_BLOCK_QUERIES, -(-window // 4))
    return queries, -(-(window - 1) // queries)


def groups(queries: int, keys_before: int, window: int) -> list[tuple[int, int, int]]:
    """Returns groups of blocks that are computed together.

    Each group is (first block, end, number of key blocks that each block sees). A block at the
    start of a sequence has fewer keys and forms its own group; all others form one group.
    """
    size, before = block_sizes(window)
    blocks, available = -(-queries // size), -(-keys_before // size)
    alone = min(blocks, max(0, before - available))
    found = [(block, block + 1, available + block + 1) for block in range(alone)]
    return found + ([(alone, blocks, before + 1)] if alone < blocks else [])


def masked_out_keys(
    document: Tensor, window: int, start: int, end: int, first_key: int
) -> list[Tensor]:
    """Returns the masked-out keys of queries at [start, end), one tensor per group of blocks.

    Each tensor is (batch, blocks, queries, keys) bool, True where a key is not seen.

    Args:
        document: Index of each token's document, (batch, seq).
        window: Number of keys that a query sees, itself included.
        start: Position of the first query.
        end: Position after the last query and the last key.
        first_key: Position of the first key.
    """
    size, _ = block_sizes(window)
    query = _split_in_blocks(document[:, start:end], size, 0, -(end - start) % size, value=-1)
    # Padding before the keys (-2) and after the queries (-1) belongs to no document.
    front = -(start - first_key) % size
    key = _split_in_blocks(document[:, first_key:end], size, front, -(end - start) % size, value=-2)
    found = []
    for first, last, seen in groups(end - start, start - first_key, window):
        seen_keys = _keys_of_blocks(key, query.shape[1], first, last, seen)
        own = torch.arange(size, device=document.device)
        distance = own[:, None] + (seen - 1) * size - torch.arange(seen * size).to(own.device)
        other = query[:, first:last, :, None] != seen_keys[:, :, None]
        found.append(other | (distance < 0) | (distance >= window))
    return found


def attend_blocks(q: Tensor, k: Tensor, v: Tensor, window: int, masked_out: list[Tensor]) -> Tensor:
    """Returns attention of q over k and v, shaped like q.

    Args:
        q: Queries, (batch, queries, heads, head_dim).
        k: Keys that end at the same token as the queries, (batch, keys, kv_heads, head_dim).
        v: Values, shaped like the keys.
        window: Number of keys that a query sees, itself included.
        masked_out: The result of `masked_out_keys`.
    """
    batch, queries, heads, head_dim = q.shape
    kv_heads = k.shape[2]
    size, _ = block_sizes(window)
    extra, before = -queries % size, k.shape[1] - queries
    # (batch, blocks, kv_heads, heads per kv_head * queries per block, head_dim)
    q = _split_in_blocks(q * head_dim**-0.5, size, 0, extra)
    blocks = q.shape[1]
    q = q.unflatten(3, (kv_heads, -1)).permute(0, 1, 3, 4, 2, 5).flatten(3, 4)
    k, v = (_split_in_blocks(x, size, -before % size, extra) for x in (k, v))
    parts = []
    for (first, last, seen), hidden in zip(
        groups(queries, before, window), masked_out, strict=True
    ):
        # (batch, blocks, kv_heads, keys per block, head_dim)
        keys, values = (
            _keys_of_blocks(x, blocks, first, last, seen).transpose(2, 3) for x in (k, v)
        )
        scores = (q[:, first:last] @ keys.transpose(-1, -2)).unflatten(3, (-1, size))
        scores = scores.masked_fill(hidden[:, :, None, None], torch.finfo(q.dtype).min)
        parts.append(scores.softmax(-1).flatten(3, 4) @ values)
    out = torch.cat(parts, 1).unflatten(3, (-1, size)).permute(0, 1, 4, 2, 3, 5)
    return out.reshape(batch, -1, heads, head_dim)[:, :queries]


def _split_in_blocks(x: Tensor, size: int, front: int, extra: int, value: float = 0) -> Tensor:
    """Returns x (batch, tokens, ...) as (batch, blocks, size, ...), padded at both ends."""
    if front or extra:
        x = F.pad(x, (0, 0) * (x.dim() - 2) + (front, extra), value=value)
    return x.unflatten(1, (-1, size))


def _keys_of_blocks(x: Tensor, blocks: int, first: int, last: int, seen: int) -> Tensor:
    """Returns the keys that query blocks [first, last) see, (batch, blocks, seen * size, ...).

    x (batch, key blocks, size, ...) holds all blocks of keys. Its last `blocks` blocks have the
    same positions as the queries.
    """
    until = x.shape[1] - blocks + first + 1
    if last - first == 1:  # no copy
        return x[:, until - seen : until].flatten(1, 2)[:, None]
    shifts = range(until - seen, until)
    return torch.cat([x[:, shift : shift + last - first] for shift in shifts], 2)
