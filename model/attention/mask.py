"""Attention masks: which keys each query sees, in the form that a backend takes.

A query sees the keys of its own document up to itself. With a window of W tokens, it sees at most
the last W of these, itself included. Example with W = 2 and two documents, a b c | d e, packed into
one sequence:

        a b c d e
    a   x
    b   x x
    c     x x
    d         x         d does not see c, which belongs to another document
    e         x x

`cu_seqlens` holds the starts of all documents over the flattened (batch * seq) tokens, here
[0, 3, 5].
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from model.attention.windowed import masked_out_keys

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

VARLEN_BACKENDS = ("varlen", "fa3", "fa4", "flash")
"""Backends that take the starts of documents instead of a mask tensor."""


class QueryRange(NamedTuple):
    """Contiguous query positions [start, end) in a sequence, and the first key that they need."""

    start: int
    end: int
    first_key: int


@dataclass
class QueryBlock:
    """The mask of contiguous queries over their keys, from the first key seen to the last.

    Attributes:
        queries: Indices of the queries in this process's tensor of queries.
        keys: Indices of the keys in this process's tensor of keys.
        window: Number of keys that a query sees, itself included; None for all earlier ones.
        dense_mask: (batch or 1, 1, queries, keys) for `sdpa` and `cudnn`, in the dtype of the
            queries: 0 where a key is seen, and -inf elsewhere; None if plain causal attention is
            exact.
        repeats_kv: True if `sdpa` has to copy keys and values for each head of the queries.
        masked_out: For `blocks`, one tensor per group of blocks, (batch, blocks, queries, keys)
            bool, True where a key is not seen; None for other backends.
        cu_seqlens_q: (documents + 1,) int32 starts of documents among the flattened queries, for
            `varlen` and `flash`; None for other backends.
        cu_seqlens_k: The same as cu_seqlens_q, but among the flattened keys. Never the same tensor:
            torch.compile refuses one that is passed twice to an `autograd.Function`.
        max_seqlen_q: Upper bound of the queries of a document, for `varlen` and `flash`.
        max_seqlen_k: Upper bound of the keys of a document.
        block_mask: FlexAttention's mask, for `flex`; None for other backends.
    """

    queries: slice
    keys: slice
    window: int | None
    dense_mask: Tensor | None = None
    repeats_kv: bool = False
    masked_out: list[Tensor] | None = None
    cu_seqlens_q: Tensor | None = None
    cu_seqlens_k: Tensor | None = None
    max_seqlen_q: int = 0
    max_seqlen_k: int = 0
    block_mask: BlockMask | None = None


@dataclass
class AttentionMask:
    """The keys that each query of a batch sees, shared by all layers with the same window.

    Attributes:
        backend: The backend that the mask is made for.
        blocks: Masks of this process's queries, in order.
        fetch: If sequences are split over processes, maps the (keys, values) of this process to
            those of all positions that its queries need; None if sequences are whole.
    """

    backend: str
    blocks: list[QueryBlock]
    fetch: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None = None


def attention_masks(
    backend: str,
    batch: int,
    seq_len: int,
    windows: Collection[int | None],
    cu_seqlens: Tensor | None,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    max_seqlen: int | None = None,
) -> dict[int | None, AttentionMask]:
    """Returns the mask of each window for whole sequences; see `attention_mask`."""
    made = {
        window: attention_mask(
            backend, batch, seq_len, window, cu_seqlens, device, dtype=dtype, max_seqlen=max_seqlen
        )
        for window in {effective_window(window, seq_len) for window in windows}
    }
    return {window: made[effective_window(window, seq_len)] for window in windows}


def effective_window(window: int | None, seq_len: int) -> int | None:
    """Returns the window, or None if it covers the whole sequence."""
    return None if window is None or window >= seq_len else window


def attention_mask(
    backend: str,
    batch: int,
    seq_len: int,
    window: int | None,
    cu_seqlens: Tensor | None,
    device: torch.device,
    ranges: Sequence[QueryRange] | None = None,
    key_offsets: Sequence[int] | None = None,
    dtype: torch.dtype = torch.float32,
    max_seqlen: int | None = None,
) -> AttentionMask:
    """Returns the mask of a batch of packed sequences in the form that `backend` takes.

    Args:
        backend: A name in `model.attention.backends.BACKENDS`.
        batch: Number of sequences.
        seq_len: Tokens per sequence.
        window: Number of keys that a query sees, itself included; None for all earlier ones.
        cu_seqlens: (documents + 1,) int32 starts of documents over the flattened tokens, padded at
            the end with batch * seq_len; None if every sequence is one document. Every sequence
            starts a document.
        device: Device of the mask.
        ranges: The queries that this process holds if sequences are split over processes; None
            for all queries.
        key_offsets: Index of the first key of each of `ranges` among the keys that this process
            holds or fetches; None if it has all keys from the first that `ranges` need.
        dtype: Dtype of the queries.
        max_seqlen: Upper bound of the tokens in a document; None for seq_len.
    """
    window = effective_window(window, seq_len)
    if cu_seqlens is not None and len(cu_seqlens) == batch + 1:  # one document per sequence
        cu_seqlens = None
    ranges = ranges or [QueryRange(0, seq_len, 0)]
    if key_offsets is None:
        first_key = min(part.first_key for part in ranges)
        key_offsets = [part.first_key - first_key for part in ranges]
    is_plain_causal = (
        len(ranges) == 1 and cu_seqlens is None and window is None and ranges[0].first_key == 0
    )
    longest = seq_len if max_seqlen is None or cu_seqlens is None else max_seqlen
    first_seen: Tensor | None = None
    blocks = []
    held = 0
    for part, offset in zip(ranges, key_offsets, strict=True):
        length = part.end - part.start
        keys = slice(offset, offset + part.end - part.first_key)
        block = QueryBlock(slice(held, held + length), keys, window)
        held += length
        if backend == "blocks" and window is not None:
            starts = _starts(cu_seqlens, batch, seq_len, device)
            documents = _document_numbers(starts, batch, seq_len)
            block.masked_out = masked_out_keys(documents, window, *part)
        elif backend in VARLEN_BACKENDS:
            starts = _starts(cu_seqlens, batch, seq_len, device)
            block.cu_seqlens_q = _local_starts(starts, seq_len, part.start, part.end)
            block.cu_seqlens_k = _local_starts(starts, seq_len, part.first_key, part.end).clone()
            block.max_seqlen_q = min(longest, part.end - part.start)
            block.max_seqlen_k = min(longest, part.end - part.first_key)
        elif backend == "flex" or not is_plain_causal:
            if first_seen is None:
                first_seen = first_seen_keys(batch, seq_len, window, cu_seqlens, device)
            if backend == "flex":
                from model.attention.flex import make_block_mask

                block.block_mask = make_block_mask(first_seen, batch, *part)
            else:
                block.dense_mask = _dense_mask(first_seen, part, dtype)
                block.repeats_kv = device.type == "cuda" and not masked_kernel_groups(device)
        blocks.append(block)
    return AttentionMask(backend, blocks)


@cache
def masked_kernel_groups(device: torch.device) -> bool:
    """Returns whether a kernel of torch takes a mask with grouped queries, in all dtypes.

    Without one, torch takes the kernel that materializes all scores in float32.
    """
    from torch.backends.cuda import SDPAParams, can_use_efficient_attention

    q, k, mask = (torch.zeros(1, n, 64, 64, device=device) for n in (2, 1, 1))
    return can_use_efficient_attention(SDPAParams(q, k, k, mask, 0.0, False, True))


def first_seen_keys(
    batch: int,
    seq_len: int,
    window: int | None,
    cu_seqlens: Tensor | None,
    device: torch.device,
) -> Tensor:
    """Returns the position of the first key that each query sees, (batch or 1, seq) int32.

    A query sees all keys from there up to itself. The result has one row if all sequences have the
    same mask.
    """
    position = torch.arange(seq_len, dtype=torch.int32, device=device)
    if cu_seqlens is None:
        first = torch.zeros_like(position)[None]
    else:
        document = _document_numbers(cu_seqlens, batch, seq_len)
        first = cu_seqlens[document - 1] % seq_len
    return first if window is None else first.maximum(position - (window - 1))


def _starts(cu_seqlens: Tensor | None, batch: int, seq_len: int, device: torch.device) -> Tensor:
    """Returns the starts of documents, which are those of the sequences if there are none."""
    if cu_seqlens is not None:
        return cu_seqlens
    return torch.arange(0, (batch + 1) * seq_len, seq_len, dtype=torch.int32, device=device)


def _local_starts(cu_seqlens: Tensor, seq_len: int, start: int, end: int) -> Tensor:
    """Returns the starts of documents among the flattened tokens at positions [start, end)."""
    if (start, end) == (0, seq_len):
        return cu_seqlens
    before = (cu_seqlens % seq_len).clamp(start, end) - start
    return (cu_seqlens // seq_len * (end - start) + before).to(torch.int32)


def _dense_mask(first_seen: Tensor, part: QueryRange, dtype: torch.dtype) -> Tensor:
    """Returns 0 for seen keys and -inf for others, (batch or 1, 1, queries, keys).

    In this form all layers share one tensor; torch converts a bool mask again in each call, and
    keeps the result until the backward pass.
    """
    start, end, first_key = part
    query = torch.arange(start, end, dtype=torch.int32, device=first_seen.device)[:, None]
    key = torch.arange(first_key, end, dtype=torch.int32, device=first_seen.device)
    hidden = key < first_seen[:, start:end, None]
    hidden |= key > query
    mask = torch.zeros(hidden.shape, dtype=dtype, device=hidden.device)
    return mask.masked_fill_(hidden, float("-inf"))[:, None]


def _document_numbers(cu_seqlens: Tensor, batch: int, seq_len: int) -> Tensor:
    """Returns the index of each token's document, counted from 1, (batch, seq)."""
    token = torch.arange(batch * seq_len, dtype=cu_seqlens.dtype, device=cu_seqlens.device)
    return torch.searchsorted(cu_seqlens, token, right=True).view(batch, seq_len)
