"""Causal grouped-query attention inside documents and a sliding window, on several backends.

A window of W means that a token sees W keys, itself included: FlashAttention counts the keys to
the left of it, so its `window_size` is (W - 1, 0). Documents packed into one sequence do not see
each other; `cu_seqlens` holds the starts of all documents of the flattened (batch * seq) tokens.
"""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from conf.errors import InputError, did_you_mean


@dataclass
class Visible:
    """Which keys each query sees; built once a batch, shared by all layers.

    window: keys a query sees, itself included; None for all earlier ones.
    mask: (batch or 1, 1, seq, seq) bool, for `sdpa`; None where plain causal attention is exact.
    cu_seqlens: (documents + 1,) int32, for the varlen backends.
    """

    backend: str
    window: int | None
    mask: Tensor | None = None
    cu_seqlens: Tensor | None = None
    max_seqlen: int = 0


def visible_keys(
    backend: str,
    batch: int,
    seq_len: int,
    window: int | None,
    cu_seqlens: Tensor | None,
    device: torch.device,
) -> Visible:
    """Prepares what `backend` needs for a batch of packed sequences.

    cu_seqlens: (documents + 1,) int32 starts over the flattened tokens, padded at the end with
        batch * seq_len; None where every sequence is one document.
    """
    window = None if window is None or window >= seq_len else window
    if backend == "sdpa":
        mask = None
        if window is not None or cu_seqlens is not None:
            mask = _dense_mask(batch, seq_len, window, cu_seqlens, device)
        return Visible(backend, window, mask=mask)
    if cu_seqlens is None:
        cu_seqlens = torch.arange(
            0, (batch + 1) * seq_len, seq_len, dtype=torch.int32, device=device
        )
    return Visible(backend, window, cu_seqlens=cu_seqlens, max_seqlen=seq_len)


def _dense_mask(
    batch: int, seq_len: int, window: int | None, cu_seqlens: Tensor | None, device: torch.device
) -> Tensor:
    position = torch.arange(seq_len, device=device)
    distance = position[:, None] - position[None, :]
    mask = distance >= 0
    if window is not None:
        mask = mask & (distance < window)
    if cu_seqlens is None:
        return mask[None, None]
    token = torch.arange(batch * seq_len, dtype=cu_seqlens.dtype, device=device)
    document = torch.searchsorted(cu_seqlens, token, right=True).view(batch, seq_len)
    return (mask & (document[:, :, None] == document[:, None, :]))[:, None]


def attend(q: Tensor, k: Tensor, v: Tensor, visible: Visible) -> Tensor:
    """Attention of q (batch, seq, heads, head_dim) over k, v (batch, seq, kv_heads, head_dim);
    returns (batch, seq, heads, head_dim)."""
    return BACKENDS[visible.backend](q, k, v, visible)


def _sdpa(q: Tensor, k: Tensor, v: Tensor, visible: Visible) -> Tensor:
    out = F.scaled_dot_product_attention(
        q.transpose(1, 2),
        k.transpose(1, 2),
        v.transpose(1, 2),
        attn_mask=visible.mask,
        is_causal=visible.mask is None,
        enable_gqa=q.shape[2] != k.shape[2],
    )
    return out.transpose(1, 2)


def _left_right(visible: Visible) -> tuple[int, int]:
    return (-1, 0) if visible.window is None else (visible.window - 1, 0)


def _varlen(q: Tensor, k: Tensor, v: Tensor, visible: Visible) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    options: dict[str, Any] = {"window_size": _left_right(visible)}
    if q.shape[2] != k.shape[2]:
        if "enable_gqa" in inspect.signature(varlen_attn).parameters:
            options["enable_gqa"] = True
        else:  # torch 2.11 has the window but not yet grouped queries
            groups = q.shape[2] // k.shape[2]
            k, v = k.repeat_interleave(groups, 2), v.repeat_interleave(groups, 2)
    out = varlen_attn(
        q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1), *_documents(visible), **options
    )
    assert isinstance(out, Tensor)
    return out.view(q.shape)


def _documents(visible: Visible) -> tuple[Tensor, Tensor, int, int]:
    """Starts of queries' and keys' documents, and the longest of each."""
    starts, longest = visible.cu_seqlens, visible.max_seqlen
    assert starts is not None
    return starts, starts, longest, longest


def _flash(q: Tensor, k: Tensor, v: Tensor, visible: Visible) -> Tensor:
    from flash_attn import flash_attn_varlen_func

    out = flash_attn_varlen_func(
        q.flatten(0, 1),
        k.flatten(0, 1),
        v.flatten(0, 1),
        *_documents(visible),
        causal=True,
        window_size=_left_right(visible),
    )
    return out.view(q.shape)


BACKENDS: dict[str, Callable[[Tensor, Tensor, Tensor, Visible], Tensor]] = {
    "sdpa": _sdpa,
    "varlen": _varlen,
    "flash": _flash,
}


def usable_backends(device: torch.device, dtype: torch.dtype) -> list[str]:
    """The backends that exist here for this type of numbers.

    The others than `sdpa` are CUDA's; its varlen kernels take 16-bit numbers only.
    """
    if device.type != "cuda":
        return ["sdpa"]
    found = ["sdpa"]
    if dtype in (torch.bfloat16, torch.float16):
        if _torch_varlen_has_window():
            found.append("varlen")
        if importlib.util.find_spec("flash_attn") is not None:
            found.append("flash")
    return found


def check_backend(name: str, device: torch.device, dtype: torch.dtype) -> None:
    """Raises InputError where a backend is unknown or cannot run here."""
    if name not in BACKENDS:
        raise InputError(f"attention={name} is not known{did_you_mean(name, ['auto', *BACKENDS])}.")
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
