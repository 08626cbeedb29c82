"""Causal grouped-query attention inside documents and a sliding window, on several backends.

A window of W means that a token sees W keys, itself included: FlashAttention counts the keys to
the left of it, so its `window_size` is (W - 1, 0). Documents packed into one sequence do not see
each other; `cu_seqlens` holds the starts of all documents of the flattened (batch * seq) tokens.
"""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from conf.errors import InputError, did_you_mean
from model.attention.windowed import attend_blocks, hidden_in_blocks

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask


@dataclass
class Span:
    """Neighbouring queries, and the keys that lie from the first one they see to the last of them.

    queries, keys: where they are in the tensors of this process.
    window: keys a query sees, itself included; None for all earlier ones.
    mask: (batch or 1, 1, queries, keys) bool, for `sdpa`; None where plain causal attention is
        exact.
    hidden: of groups of blocks (batch, blocks, queries, keys) bool, for `blocks`; None for others.
    query_starts, key_starts: (documents + 1,) int32, where documents begin in the flattened
        queries and keys of the batch, for the varlen backends; None for others.
    blocks: which blocks of keys are seen, for `flex`; None for others.
    """

    queries: slice
    keys: slice
    window: int | None
    mask: Tensor | None = None
    hidden: list[Tensor] | None = None
    query_starts: Tensor | None = None
    key_starts: Tensor | None = None
    blocks: BlockMask | None = None


@dataclass
class Visible:
    """Which keys each query sees; built once a batch, shared by all layers.

    fetch: (keys, values) of this process -> those of all positions that its spans need, where the
        sequences are spread over processes; None where they are whole.
    """

    backend: str
    spans: list[Span]
    fetch: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None = None


def visible_keys(
    backend: str,
    batch: int,
    seq_len: int,
    window: int | None,
    cu_seqlens: Tensor | None,
    device: torch.device,
    spans: Sequence[tuple[int, int, int]] | None = None,
) -> Visible:
    """Prepares what `backend` needs for a batch of packed sequences.

    cu_seqlens: (documents + 1,) int32 starts over the flattened tokens, padded at the end with
        batch * seq_len; None where every sequence is one document.
    spans: of the queries that this process has (first position, end, first key they need), where
        it has not whole sequences; its keys begin at the first that any span needs.
    """
    window = None if window is None or window >= seq_len else window
    spans = spans or [(0, seq_len, 0)]
    whole = len(spans) == 1 and cu_seqlens is None and window is None and spans[0][2] == 0
    if cu_seqlens is None:
        cu_seqlens = torch.arange(
            0, (batch + 1) * seq_len, seq_len, dtype=torch.int32, device=device
        )
    origin = min(first_key for *_, first_key in spans)
    found = []
    at = 0
    for start, end, first_key in spans:
        span = Span(slice(at, at + end - start), slice(first_key - origin, end - origin), window)
        at += end - start
        if backend == "flex":
            from model.attention.flex import block_mask

            document = _document(cu_seqlens, batch, seq_len)
            span.blocks = block_mask(document, window, start, end, first_key)
        elif backend == "blocks" and window is not None:
            document = _document(cu_seqlens, batch, seq_len)
            span.hidden = hidden_in_blocks(document, window, start, end, first_key)
        elif backend not in ("sdpa", "cudnn", "blocks"):
            span.query_starts = _starts(cu_seqlens, seq_len, start, end)
            span.key_starts = _starts(cu_seqlens, seq_len, first_key, end)
        elif not whole:
            span.mask = _mask(batch, seq_len, window, cu_seqlens, start, end, first_key)
        found.append(span)
    return Visible(backend, found)


def _starts(cu_seqlens: Tensor, seq_len: int, start: int, end: int) -> Tensor:
    """Where documents begin among the flattened tokens at positions [start, end) of sequences."""
    if (start, end) == (0, seq_len):
        return cu_seqlens
    before = (cu_seqlens % seq_len).clamp(start, end) - start
    return (cu_seqlens // seq_len * (end - start) + before).to(torch.int32)


def _mask(
    batch: int,
    seq_len: int,
    window: int | None,
    cu_seqlens: Tensor,
    start: int,
    end: int,
    first_key: int,
) -> Tensor:
    position = torch.arange(seq_len, device=cu_seqlens.device)
    distance = position[start:end, None] - position[None, first_key:end]
    mask = distance >= 0
    if window is not None:
        mask = mask & (distance < window)
    document = _document(cu_seqlens, batch, seq_len)
    same = document[:, start:end, None] == document[:, None, first_key:end]
    return (mask & same)[:, None]


def _document(cu_seqlens: Tensor, batch: int, seq_len: int) -> Tensor:
    """Number of each token's document, (batch, seq)."""
    token = torch.arange(batch * seq_len, dtype=cu_seqlens.dtype, device=cu_seqlens.device)
    return torch.searchsorted(cu_seqlens, token, right=True).view(batch, seq_len)


def attend(q: Tensor, k: Tensor, v: Tensor, visible: Visible) -> Tensor:
    """Attention of q (batch, seq, heads, head_dim) over k, v (batch, seq, kv_heads, head_dim);
    returns (batch, seq, heads, head_dim)."""
    if visible.fetch is not None:
        k, v = visible.fetch(k, v)
    backend = BACKENDS[visible.backend]
    if len(visible.spans) == 1:
        return backend(q, k, v, visible.spans[0])
    parts = [
        backend(q[:, span.queries], k[:, span.keys], v[:, span.keys], span)
        for span in visible.spans
    ]
    return torch.cat(parts, dim=1)


def _sdpa(q: Tensor, k: Tensor, v: Tensor, span: Span) -> Tensor:
    out = F.scaled_dot_product_attention(
        q.transpose(1, 2),
        k.transpose(1, 2),
        v.transpose(1, 2),
        attn_mask=span.mask,
        is_causal=span.mask is None,
        enable_gqa=q.shape[2] != k.shape[2],
    )
    return out.transpose(1, 2)


def _cudnn(q: Tensor, k: Tensor, v: Tensor, span: Span) -> Tensor:
    """SDPA with cuDNN's kernel before torch's own choice: on Hopper the fastest where plain causal
    attention is exact."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    kernels = [
        SDPBackend.CUDNN_ATTENTION,
        SDPBackend.FLASH_ATTENTION,
        SDPBackend.EFFICIENT_ATTENTION,
        SDPBackend.MATH,
    ]
    with sdpa_kernel(kernels, set_priority=True):
        return _sdpa(q, k, v, span)


def _blocks(q: Tensor, k: Tensor, v: Tensor, span: Span) -> Tensor:
    if span.hidden is None:  # the window reaches over the whole sequence
        return _sdpa(q, k, v, span)
    assert span.window is not None
    return attend_blocks(q, k, v, span.window, span.hidden)


def _flex(q: Tensor, k: Tensor, v: Tensor, span: Span) -> Tensor:
    from model.attention.flex import attend_flex

    assert span.blocks is not None
    return attend_flex(q, k, v, span.blocks)


def _left_right(span: Span) -> tuple[int, int]:
    return (-1, 0) if span.window is None else (span.window - 1, 0)


def _varlen(q: Tensor, k: Tensor, v: Tensor, span: Span) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    options: dict[str, Any] = {"window_size": _left_right(span)}
    if q.shape[2] != k.shape[2]:
        if "enable_gqa" in inspect.signature(varlen_attn).parameters:
            options["enable_gqa"] = True
        else:  # torch 2.11 has the window but not yet grouped queries
            groups = q.shape[2] // k.shape[2]
            k, v = k.repeat_interleave(groups, 2), v.repeat_interleave(groups, 2)
    out = varlen_attn(
        q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1), *_documents(q, k, span), **options
    )
    assert isinstance(out, Tensor)
    return out.view(q.shape)


def _documents(q: Tensor, k: Tensor, span: Span) -> tuple[Tensor, Tensor, int, int]:
    """Starts of queries' and keys' documents, and the longest that each may be. Where a document
    has fewer queries than keys, its queries are its last ones: both end at the same token."""
    assert span.query_starts is not None
    assert span.key_starts is not None
    return span.query_starts, span.key_starts, q.shape[1], k.shape[1]


def _flash(q: Tensor, k: Tensor, v: Tensor, span: Span) -> Tensor:
    from flash_attn import flash_attn_varlen_func

    out = flash_attn_varlen_func(
        q.flatten(0, 1),
        k.flatten(0, 1),
        v.flatten(0, 1),
        *_documents(q, k, span),
        causal=True,
        window_size=_left_right(span),
    )
    return out.view(q.shape)


BACKENDS: dict[str, Callable[[Tensor, Tensor, Tensor, Span], Tensor]] = {
    "sdpa": _sdpa,
    "cudnn": _cudnn,
    "blocks": _blocks,
    "flex": _flex,
    "varlen": _varlen,
    "flash": _flash,
}


def usable_backends(device: torch.device, dtype: torch.dtype) -> list[str]:
    """The backends that exist here for this type of numbers.

    The others than `sdpa` and `blocks` are CUDA's, or have no backward pass elsewhere (`flex`);
    those of cuDNN, varlen and flash take 16-bit numbers only.
    """
    if device.type != "cuda":
        return ["sdpa", "blocks"]
    found = ["sdpa", "flex"]
    if dtype in (torch.bfloat16, torch.float16):
        if torch.backends.cudnn.is_available():
            found.append("cudnn")
        if _torch_varlen_has_window():
            found.append("varlen")
        if importlib.util.find_spec("flash_attn") is not None:
            found.append("flash")
    return found


def check_backend_name(name: str) -> None:
    """Raises InputError where a backend is not known."""
    if name not in BACKENDS:
        raise InputError(f"attention={name} is not known{did_you_mean(name, ['auto', *BACKENDS])}.")


def check_backend(name: str, device: torch.device, dtype: torch.dtype) -> None:
    """Raises InputError where a backend is not known or cannot run here."""
    check_backend_name(name)
    if name not in usable_backends(device, dtype):
        raise InputError(
            f"attention={name} cannot run on {device.type} in {str(dtype).removeprefix('torch.')} "
            "with the packages here: use attention=auto."
        )


def _torch_varlen_has_window() -> bool:
    if importlib.util.find_spec("torch.nn.attention.varlen") is None:
        return False
    from torch.nn.attention.varlen import varlen_attn

    return "window_size" in inspect.signature(varlen_attn).parameters
