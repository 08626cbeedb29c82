"""Times attention, forward and backward, at the shape of Danube-1.8B: all kernels side by side."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.context import Context
from benchmarks.gpu.worker import Recorder
from benchmarks.gpu_training import model_config

TOKENS = 32768
DOCUMENT_TOKENS = 1000
PADDED_DOCUMENT_TOKENS = 64
"""Mean document length for which `padded` leaves room, whatever the documents are. It also gives
the length of the sequence as that of the longest document."""
CASES = (
    ("cudnn", 2048, "causal"),
    ("varlen", 2048, "causal"),
    ("varlen", 2048, "documents"),
    ("varlen", 2048, "documents, padded"),
    ("flex", 2048, "documents"),
    ("cudnn", 2048, "documents"),
    ("sdpa", 2048, "causal"),
    ("varlen", 16384, "documents"),
    ("flex", 16384, "documents"),
    ("varlen", 16384, "causal"),
    ("cudnn", 16384, "documents"),
)
"""Backend, sequence length, and the documents of a sequence. 16384 tokens exceed the window."""


def attention_speed(recorder: Recorder) -> None:
    """Times each case that this machine can run."""
    from model.attention.backends import usable_backends

    context: Context = recorder.context
    usable = usable_backends(context.device, torch.bfloat16)
    cases = [*CASES, *(("flash", *rest) for name, *rest in CASES if name == "varlen")]
    if context.device.type == "cpu":
        cases = [("blocks", 16384, "documents"), ("sdpa", 2048, "causal")]
    for backend, seq_len, documents in cases:
        if backend in usable:
            title = f"{backend}, {seq_len}, {documents}"
            recorder.measure(title, timed, backend, seq_len, documents, context, needs=3)


def timed(backend: str, seq_len: int, documents: str, context: Context) -> dict[str, Any]:
    """Returns the seconds of one layer, and its TFLOP/s over the keys that are seen."""
    from pretrain.attention_choice import AttentionWork

    model = model_config("danube_1_8b", context.tiny)
    tokens = 512 if context.tiny else TOKENS
    seq_len = seq_len * 128 // 16384 if context.tiny else seq_len
    shape = (tokens // seq_len, seq_len)
    starts = starts_of(*shape, documents)
    work = AttentionWork(
        backend,
        model=model,
        shape=shape,
        tp=1,
        cu_seqlens=None if starts is None else starts.to(context.device),
        device=context.device,
        dtype=torch.bfloat16,
        max_seqlen=None if starts is None or "padded" in documents else longest(starts),
    )
    masks = work.masks()  # not timed
    windows = work.windows if len(masks) > 1 else work.windows[:1]
    seconds = context.seconds(lambda: work.run(masks, windows))
    keys = seen_keys(*shape, starts, model.sliding_window)
    assert model.head_dim is not None
    flops = 12 * model.num_heads * model.head_dim * keys  # 2 products forward, 4 backward
    return {
        "layer_seconds": seconds,
        "tflops": flops / seconds / 1e12,
        "documents": shape[0] if starts is None else len(starts.unique()) - 1,
        "entries": 0 if starts is None else len(starts),
    }


def starts_of(batch: int, seq_len: int, documents: str) -> Tensor | None:
    """Returns the starts of random documents; None for one document per sequence."""
    if documents == "causal":
        return None
    tokens = batch * seq_len
    generator = torch.Generator().manual_seed(0)
    count = max(1, tokens // DOCUMENT_TOKENS)
    inside = torch.randint(1, tokens, (count,), generator=generator)
    starts = torch.cat((torch.arange(0, tokens + 1, seq_len), inside)).unique().int()
    if documents == "documents":
        return starts
    length = tokens // PADDED_DOCUMENT_TOKENS + batch + 1
    return torch.cat((starts, starts[-1:].expand(length - len(starts))))


def longest(starts: Tensor) -> int:
    """Returns the length of the longest document."""
    return int(starts.diff().max())


def seen_keys(batch: int, seq_len: int, starts: Tensor | None, window: int | None) -> int:
    """Returns the number of (query, key) pairs that attention computes."""
    if starts is None:
        starts = torch.arange(0, batch * seq_len + 1, seq_len)
    total = 0
    for length in starts.diff().tolist():
        near = min(length, window or length)
        total += near * (near + 1) // 2 + (length - near) * near
    return total
