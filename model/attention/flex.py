"""Attention by torch's FlexAttention: blocks of keys that no query of a block sees are skipped.

Its backward pass exists on CUDA only, and its kernel pads a head's size to a power of two.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

_compiled = torch.compile(flex_attention, dynamic=False)


def block_mask(
    document: Tensor, window: int | None, start: int, end: int, first_key: int
) -> BlockMask:
    """Which keys at positions [first_key, end) the queries at [start, end) see.

    document: (batch, seq) number of each token's document; window: keys a query sees, itself
    included; None for all earlier ones.
    """
    reach = document.shape[1] if window is None else window

    def sees(batch: Tensor, _: Tensor, query: Tensor, key: Tensor) -> Tensor:
        query, key = query + start, key + first_key
        near = (query >= key) & (query - key < reach)
        return near & (document[batch, query] == document[batch, key])

    sizes = document.shape[0], None, end - start, end - first_key
    return create_block_mask(sees, *sizes, device=str(document.device))


def attend_flex(q: Tensor, k: Tensor, v: Tensor, mask: BlockMask) -> Tensor:
    """q (batch, queries, heads, head_dim), k, v (batch, keys, kv_heads, head_dim) -> as q."""
    # Uncompiled it holds all scores; on a CPU that is for tests.
    attention = _compiled if q.is_cuda else flex_attention
    out = attention(
        q.transpose(1, 2),
        k.transpose(1, 2),
        v.transpose(1, 2),
        block_mask=mask,
        enable_gqa=q.shape[2] != k.shape[2],
    )
    assert isinstance(out, Tensor)
    return out.transpose(1, 2)
