"""Chooses the fastest attention backend for each sequence length, timed once at the start.

The fastest backend depends on the GPU, the packages, the head size, the window and the document
lengths, so `parallel.attention=auto` times every usable backend on the first batch of each sequence
length. Rank 0 decides for all ranks, because backends round differently. On a CPU nothing is timed,
so that runs are reproducible bit for bit: `blocks` is used with a window and `sdpa` without one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from data_pipeline.sampling.batches import BatchReader
from data_pipeline.sampling.dealing import deal_step
from data_pipeline.sampling.recipe import StagePlan
from model.attention.backends import attend, check_backend, usable_backends
from model.attention.mask import attention_masks
from model.config import ModelConfig
from pretrain.config import PretrainConfig
from pretrain.hardware import compute_dtype
from pretrain.parallel.mesh import Layout
from pretrain.processes import Processes

ITERATIONS = 5


@dataclass
class Timing:
    """The backend for one sequence length, with the times of all candidates.

    seconds: per backend, the time of attention's forward and backward pass on one micro-batch, in
        one layer, or in all layers if their windows differ.
    failed: the reason for each backend that could not run.
    """

    backend: str
    seconds: dict[str, float] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)


def choose_attention(
    config: PretrainConfig,
    plan: StagePlan,
    reader: BatchReader,
    layout: Layout,
    processes: Processes,
) -> dict[int, Timing]:
    """Returns the backend for each sequence length of the plan, the same on all ranks.

    Raises InputError if the config names a backend that cannot run here. With context parallelism,
    unsplit sequences are timed.
    """
    name, dtype = config.parallel.attention, compute_dtype(config.precision)
    if name != "auto":
        check_backend(name, processes.device, dtype)
        return {stage.seq_len: Timing(name) for stage in plan.stages}
    if processes.device.type == "cpu":
        window = config.model.sliding_window
        return {
            stage.seq_len: Timing("blocks" if window and window < stage.seq_len else "sdpa")
            for stage in plan.stages
        }
    candidates = usable_backends(processes.device, dtype)
    answer: list[Any] = [None]
    if processes.is_main:
        answer = [{}]
        for stage in {stage.seq_len: stage for stage in plan.stages}.values():
            micro_batch_tokens = config.parallel.micro_batch_tokens
            deal = deal_step(plan, stage.end_step - 1, layout.dp.size(), micro_batch_tokens)
            batch = deal.rows
            first = next(iter(reader.read_all(stage.index, np.arange(batch), batch)))
            work = partial(
                forward_backward,
                model=config.model,
                shape=(batch, stage.seq_len),
                tp=layout.tp.size(),
                cu_seqlens=first.cu_seqlens.to(processes.device),
                device=processes.device,
                dtype=dtype,
            )
            answer[0][stage.seq_len] = fastest(candidates, work)
    dist.broadcast_object_list(answer, src=0)
    return answer[0]


def fastest(candidates: Sequence[str], work: Callable[[str], Callable[[], None]]) -> Timing:
    """Times the candidates and returns the fastest; a single candidate is not timed.

    Candidates that fail (unsupported shapes, out of memory) are skipped. Raises RuntimeError if all
    fail.

    work: takes the name of a candidate, and returns a function that does its work once.
    """
    if len(candidates) == 1:
        return Timing(candidates[0])
    timing = Timing("")
    for name in candidates:
        try:
            timing.seconds[name] = seconds_of(work(name))
        except Exception as why:  # each kernel raises its own errors; `failed` keeps the reason
            timing.failed[name] = str(why).split("\n")[0][:200]
    if not timing.seconds:
        raise RuntimeError(f"every attention backend failed: {timing.failed}")
    timing.backend = min(timing.seconds, key=lambda name: timing.seconds[name])
    return timing


def seconds_of(work: Callable[[], None]) -> float:
    """Returns the shortest time of several runs, after a first run that compiles and warms up."""
    wait = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    work()
    best = float("inf")
    for _ in range(ITERATIONS):
        wait()
        started = time.perf_counter()
        work()
        wait()
        best = min(best, time.perf_counter() - started)
    return best


def forward_backward(
    name: str,
    model: ModelConfig,
    shape: tuple[int, int],
    tp: int,
    cu_seqlens: Tensor | None,
    device: torch.device,
    dtype: torch.dtype,
) -> Callable[[], None]:
    """Returns a function that runs one layer's attention and its gradients with a backend.

    The function runs the heads that one of `tp` ranks has. If the layers' windows differ, it runs
    all layers.

    Args:
        name: The backend.
        model: Config of the network.
        shape: (batch, seq).
        tp: Number of tensor-parallel ranks.
        cu_seqlens: (documents + 1,) int32 starts of documents, on the device; None if every
            sequence is one document.
        device: Device of the inputs.
        dtype: Dtype of the inputs.
    """
    assert model.head_dim is not None
    heads = [model.num_heads // tp, model.num_kv_heads // tp, model.num_kv_heads // tp]
    shapes = [(*shape, number, model.head_dim) for number in heads]
    inputs = [torch.randn(size, device=device, dtype=dtype) for size in shapes]
    q, k, v = (tensor.requires_grad_() for tensor in inputs)
    windows = [layer.window for layer in model.layers]
    masks = attention_masks(name, *shape, set(windows), cu_seqlens, device)
    timed = windows if len(masks) > 1 else windows[:1]

    def work() -> None:
        for window in timed:
            out = attend(q, k, v, masks[window])
            torch.autograd.grad(out, (q, k, v), torch.ones_like(out))

    return work
