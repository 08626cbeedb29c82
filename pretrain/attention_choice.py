"""Which attention backend each stage runs on: the fastest one here, timed once at the start.

What is fastest depends on the GPU, the packages, the head's size, the window and the documents of
the data, so `parallel.attention=auto` times every backend that exists here on the first batch of
each sequence length. Rank 0 times and decides: one that chose otherwise would round otherwise.
A CPU has two that are better one with a window and one without: nothing is timed, so that a run
there is the same bit for bit each time.
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
    """Of one sequence length. seconds: of a forward and backward pass of one layer on one
    micro-batch by backend, for those that ran; failed: why others did not."""

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
    """The backend for each sequence length of the plan, the same on all ranks.

    Raises InputError where the config names one that is unknown or cannot run here. Under context
    parallelism whole sequences are timed.
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
    """Times the candidates and names the fastest; nothing is timed where there is one only.

    work: a candidate's name -> a function that does its work once. One that fails (a shape that
    its kernels do not take, memory) is passed over; RuntimeError where all fail.
    """
    if len(candidates) == 1:
        return Timing(candidates[0])
    timing = Timing("")
    for name in candidates:
        try:
            timing.seconds[name] = seconds_of(work(name))
        except Exception as why:  # kernels refuse in ways of their own; the reason is kept
            timing.failed[name] = str(why).split("\n")[0][:200]
    if not timing.seconds:
        raise RuntimeError(f"no attention backend ran here: {timing.failed}")
    timing.backend = min(timing.seconds, key=lambda name: timing.seconds[name])
    return timing


def seconds_of(work: Callable[[], None]) -> float:
    """The quickest of a few times, after one that compiles and fills caches."""
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
    """One layer's attention and its gradients on a backend, over the heads of one of `tp` ranks;
    where the windows of the layers differ, that of all layers.

    shape: (batch, seq). cu_seqlens: (documents + 1,) int32 starts of documents, on the device; None
    where every sequence is one.
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
