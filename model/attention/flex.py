"""The backend `flex`: torch's FlexAttention, which skips fully masked blocks of keys.

Its backward pass exists on CUDA only, and its kernel pads head_dim to a power of two.
"""

from __future__ import annotations

import torch
import torch._inductor.config
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

# As one operator, the compiled kernel is visible to selective activation checkpointing.
_WRAP = "wrap_inductor_compiled_regions"
_compiled = torch.compile(
    flex_attention,
    dynamic=False,
    options={_WRAP: True} if hasattr(torch._inductor.config, _WRAP) else None,
)
# Without compilation, the mask's blocks are found through several (queries, keys) tensors.
_compiled_create_block_mask = torch.compile(create_block_mask, dynamic=False)


def make_block_mask(
    first_seen: Tensor, batch: int, start: int, end: int, first_key: int
) -> BlockMask:
    """Returns the mask of queries at positions [start, end) over keys at [first_key, end).

    Args:
        first_seen: Position of the first key that each query sees, (batch or 1, seq).
        batch: Number of sequences.
        start: Position of the first query.
        end: Position after the last query and the last key.
        first_key: Position of the first key.
    """
    rows = first_seen.expand(batch, -1)

    def sees(batch: Tensor, _: Tensor, query: Tensor, key: Tensor) -> Tensor:
        query, key = query + start, key + first_key
        return (query >= key) & (key >= rows[batch, query])

    sizes = batch, None, end - start, end - first_key
    create = _compiled_create_block_mask if first_seen.is_cuda else create_block_mask
    return create(sees, *sizes, device=str(first_seen.device))


def attend_flex(q: Tensor, k: Tensor, v: Tensor, mask: BlockMask) -> Tensor:
    """Returns attention of q (batch, queries, heads, head_dim) over k, v, shaped like q."""
    # The uncompiled function materializes all scores, and is only used in tests on a CPU.
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
