"""Chooses the attention backend of each stage, by timing all of them at the start of a run.

The fastest backend depends on the GPU, the packages, the head size, the window and the document
lengths, so `parallel.attention=auto` times every usable backend on the first batch of each kind of
stage, with its masks and in all layers. A backend that keeps more for the backward pass than the
memory plan has room for is rejected. Rank 0 decides for all ranks, because backends round
differently, and a resumed run keeps its backends. On a CPU nothing is timed, so that runs are
reproducible bit for bit: `blocks` is used with a window and `sdpa` without one.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from data_pipeline.sampling.batches import BatchReader
from data_pipeline.sampling.dealing import deal_step
from data_pipeline.sampling.padding import pad_batch
from data_pipeline.sampling.recipe import ScheduledStage, StagePlan
from model.attention.backends import attend, check_backend, select_flash_kernel, usable_backends
from model.attention.mask import AttentionMask, attention_masks
from model.config import ModelConfig
from pretrain.config import PretrainConfig
from pretrain.hardware import compute_dtype
from pretrain.parallel.mesh import Layout
from pretrain.planning.auto import measure_machine
from pretrain.planning.layouts import spare_bytes
from pretrain.processes import Processes

ITERATIONS = 5


@dataclass
class Timing:
    """The backend for one kind of stage, with the measurements of all candidates.

    seconds: per backend, the time to make the masks of one micro-batch, and of attention's forward
        and backward pass in all layers.
    kept_bytes: per backend, the memory that masks and forward passes keep for the backward pass.
    failed: the reason for each backend that could not run or does not fit into memory.
    resumed: whether the backend is that of the checkpoint.
    """

    backend: str
    seconds: dict[str, float] = field(default_factory=dict)
    kept_bytes: dict[str, int] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    resumed: bool = False


def attention_key(stage: ScheduledStage) -> str:
    """Returns the name of a kind of stage: its sequence length, and `joined` if documents are."""
    return f"{stage.seq_len} joined" if stage.joins_documents else str(stage.seq_len)


def choose_attention(
    config: PretrainConfig,
    plan: StagePlan,
    reader: BatchReader,
    layout: Layout,
    processes: Processes,
    metadata: Mapping[str, Any],
) -> dict[str, Timing]:
    """Returns the backend by `attention_key` for all stages of the plan, the same on all ranks.

    With context parallelism, unsplit sequences are timed.

    Args:
        config: The run.
        plan: Its stages.
        reader: Reader of the corpus.
        layout: The mesh.
        processes: The processes of the run.
        metadata: Metadata of the checkpoint from which the run resumes; empty at step 0.

    Raises:
        InputError: The config names a backend that cannot run here.
    """
    name, dtype = config.parallel.attention, compute_dtype(config.precision)
    stages = {attention_key(stage): stage for stage in plan.own_stages}
    if name != "auto":
        check_backend(name, processes.device, dtype)
        return {key: Timing(name) for key in stages}
    if processes.device.type == "cpu":
        window = config.model.sliding_window
        return {
            key: Timing("blocks" if window and window < stage.seq_len else "sdpa")
            for key, stage in stages.items()
        }
    spare = spare_bytes(config, plan, layout.sizes(), measure_machine(processes))
    answer: list[Any] = [None]
    if processes.is_main:
        candidates = usable_backends(processes.device, dtype)
        before = metadata.get("attention", {})
        answer = [{}]
        for key, stage in stages.items():
            if before.get(key) in candidates:
                answer[0][key] = Timing(before[key], resumed=True)
                continue
            work = work_of_stage(config, plan, stage, reader, layout, processes.device)
            answer[0][key] = fastest(candidates, work, spare)
    dist.broadcast_object_list(answer, src=0)
    return answer[0]


def work_of_stage(
    config: PretrainConfig,
    plan: StagePlan,
    stage: ScheduledStage,
    reader: BatchReader,
    layout: Layout,
    device: torch.device,
) -> Callable[[str], AttentionWork]:
    """Returns a function that returns, for a backend, the work of a micro-batch of the stage."""
    micro_batch_tokens = config.parallel.micro_batch_tokens
    rows = deal_step(plan, stage.end_step - 1, layout.dp.size(), micro_batch_tokens).rows
    first = next(iter(reader.read_all(stage.index, np.arange(rows), rows)))
    batch = pad_batch(first, rows, reader.document_tokens[stage.index])
    if stage.joins_documents:
        batch = batch.joined()
    cu_seqlens = batch.cu_seqlens.to(device)
    keeps_all = config.parallel.activation_checkpointing != "full"

    def work(backend: str) -> AttentionWork:
        return AttentionWork(
            backend,
            config.model,
            (rows, stage.seq_len),
            layout.tp.size(),
            cu_seqlens,
            device,
            compute_dtype(config.precision),
            batch.max_seqlen,
            config.model.num_layers if keeps_all else 1,
        )

    return work


def fastest(
    candidates: Sequence[str],
    work: Callable[[str], Callable[[], None]],
    spare: float = math.inf,
) -> Timing:
    """Times the candidates and returns the fastest; a single candidate is not timed.

    Candidates that fail (unsupported shapes, out of memory) are skipped, and so are those that keep
    over `spare` bytes more than the one that keeps the least. Raises RuntimeError if all fail.

    work: takes the name of a candidate, and returns a function that does its work once. If it is an
        `AttentionWork`, its memory is measured too.
    """
    if len(candidates) == 1:
        return Timing(candidates[0])
    timing = Timing("")
    for name in candidates:
        try:
            run = work(name)
            timing.seconds[name] = seconds_of(run)
            if isinstance(run, AttentionWork):
                timing.kept_bytes[name] = run.kept_bytes()
        except Exception as why:  # each kernel raises its own errors; `failed` keeps the reason
            timing.seconds.pop(name, None)
            timing.failed[name] = str(why).split("\n")[0][:200]
    if not timing.seconds:
        raise RuntimeError(f"every attention backend failed: {timing.failed}")
    least = min(timing.kept_bytes.values(), default=0)
    fitting = {}
    for name, seconds in timing.seconds.items():
        more = timing.kept_bytes.get(name, least) - least
        if more <= max(0, spare):
            fitting[name] = seconds
        else:
            timing.failed[name] = f"keeps {more:,} bytes more than others, which do not fit"
    timing.backend = min(fitting, key=lambda name: fitting[name])
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


class AttentionWork:
    """The attention of one micro-batch on one of `tp` ranks: its masks, and all layers.

    Calling it runs the forward and backward pass of each layer.

    Args:
        backend: The backend.
        model: Config of the network.
        shape: (batch, seq).
        tp: Number of tensor-parallel ranks.
        cu_seqlens: (documents + 1,) int32 starts of documents, on the device; None if every
            sequence is one document.
        device: Device of the inputs.
        dtype: Dtype of the inputs.
        max_seqlen: Upper bound of the tokens in a document; None for seq.
        kept_layers: Number of layers whose tensors are kept at a time until the backward pass; None
            for all.
    """

    def __init__(
        self,
        backend: str,
        model: ModelConfig,
        shape: tuple[int, int],
        tp: int,
        cu_seqlens: Tensor | None,
        device: torch.device,
        dtype: torch.dtype,
        max_seqlen: int | None = None,
        kept_layers: int | None = None,
    ) -> None:
        select_flash_kernel(backend)
        assert model.head_dim is not None
        heads = [model.num_heads // tp, model.num_kv_heads // tp, model.num_kv_heads // tp]
        shapes = [(*shape, number, model.head_dim) for number in heads]
        inputs = [torch.randn(size, device=device, dtype=dtype) for size in shapes]
        self.inputs = [tensor.requires_grad_() for tensor in inputs]
        self.windows = [layer.window for layer in model.layers]
        self.kept_layers = kept_layers
        self.masks = lambda: attention_masks(
            backend, *shape, set(self.windows), cu_seqlens, device, dtype, max_seqlen
        )

    def __call__(self) -> None:
        """Runs all layers once."""
        self.run(self.masks(), self.windows)

    def run(self, masks: Mapping[int | None, AttentionMask], windows: Sequence[int | None]) -> None:
        """Runs the forward and backward pass of layers with these windows."""
        q, k, v = self.inputs
        for window in windows:
            out = attend(q, k, v, masks[window])
            torch.autograd.grad(out, (q, k, v), torch.ones_like(out))

    def kept_bytes(self) -> int:
        """Returns the memory of the masks, and of what the layers keep for the backward pass."""
        if not torch.cuda.is_available():
            return 0
        start = torch.cuda.memory_allocated()
        masks = self.masks()
        total = torch.cuda.memory_allocated() - start
        q, k, v = self.inputs
        for window in self.windows[: self.kept_layers]:
            before = torch.cuda.memory_allocated()
            out = attend(q, k, v, masks[window])
            total += torch.cuda.memory_allocated() - before
            del out
        return total
