"""Trains whole models on random tokens: tokens/s, MFU, memory against the plan, launches, kernels.

A step is that of `benchmarks/sides.py`: forward, backward, clipping and AdamW.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from benchmarks.gpu.context import Context
from benchmarks.gpu.training import memory_figures
from benchmarks.gpu.worker import Recorder
from benchmarks.gpu_training import (
    PROFILED_STEPS,
    measure,
    model_config,
    profiled,
    started,
    with_fitting_batch,
)
from benchmarks.sides import Work, missing

if TYPE_CHECKING:
    from model.config import ModelConfig

MEASURED_SECONDS = 5.0
OLMO_1B: dict[str, Any] = {
    "name": "olmo_1b_shape",
    "architecture": "qwen3",
    "qk_norm": True,
    "vocab_size": 100352,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_layers": 16,
    "num_heads": 16,
    "num_kv_heads": 16,
    "head_dim": 128,
    "max_seq_len": 4096,
}
"""The shape of OLMo-core's 1B model, for a comparison with its published speed."""
TOP_KERNELS = 12


def work_of(
    name: str, seq_len: int, batch: int, context: Context, precision: str = "bf16", **rest: Any
) -> Work:
    """Returns the work of a model of conf/model, or of OLMO_1B; small if the session is `tiny`."""
    from model.config import ModelConfig

    model: ModelConfig
    if name == "olmo_1b_shape":
        small = model_config("qwen3_0_6b", True)
        model = replace(small, name=name) if context.tiny else ModelConfig(**OLMO_1B)
    else:
        model = model_config(name, context.tiny)
    if context.tiny:
        seq_len, batch = 128, 4
    compiled = not (context.tiny and context.device.type == "cpu")
    return Work(model, batch, seq_len, context.device.type, precision, compiled, **rest)


def danube(recorder: Recorder) -> None:
    """Measures Danube-1.8B at 2048, in the precisions and with the documents of a real run."""
    make = partial(work_of, "danube_1_8b", 2048, 16, recorder.context)
    whole_model(recorder, "Danube-1.8B, 2048, bf16", make())
    whole_model(recorder, "Danube-1.8B, 2048, bf16, documents", make(documents=True))
    whole_model(recorder, "Danube-1.8B, 2048, fp8", make(precision="fp8"))
    peer = "transformers: Danube-1.8B, 2048, bf16"
    if missing("transformers") is None:
        work = work_of("danube_1_8b", 2048, 8, recorder.context)
        recorder.measure(peer, model_figures, "transformers", work, recorder.context, needs=15)


def shapes(recorder: Recorder) -> None:
    """Measures other shapes, long sequences and small models."""
    make = partial(work_of, context=recorder.context)
    olmo, olmo_fp8 = (make("olmo_1b_shape", 4096, 8, precision=p) for p in ("bf16", "fp8"))
    long = make("danube_1_8b", 16384, 2, documents=True)
    whole_model(recorder, "OLMo-core's 1B, 4096, bf16", olmo)
    whole_model(recorder, "Danube-1.8B, 16384, bf16, documents", long)
    whole_model(recorder, "Danube3-500M, 2048, bf16", make("danube3_500m", 2048, 32))
    whole_model(recorder, "OLMo-core's 1B, 4096, fp8", olmo_fp8)


def whole_model(recorder: Recorder, title: str, work: Work) -> None:
    """Reports a model of Headwater."""
    recorder.measure(title, model_figures, "ours", work, recorder.context, needs=15)


def model_figures(side: str, work: Work, context: Context) -> dict[str, Any]:
    """Returns the speed and memory of a model with the largest batch that fits."""
    seconds = 0.0 if context.tiny else MEASURED_SECONDS
    found = with_fitting_batch(work, lambda work: measure(side, work, seconds))
    if side != "ours":
        found.pop("run")
        return found
    planned = planned_memory(replace(work, batch=found["batch"]), found["attention"])
    return found | memory_figures(planned, found["memory_bytes"], "none", work.compiled)


def planned_memory(work: Work, attention: str) -> Any:
    """Returns the planned memory of a step of one micro-batch on one device."""
    from pretrain.config import ParallelConfig
    from pretrain.planning.layouts import Machine, RunRequirements, fit
    from pretrain.planning.memory import Sizes

    tokens = work.batch * work.seq_len
    parallel = ParallelConfig(
        dp_shard=1, micro_batch_tokens=tokens, attention=attention, compile=work.compiled
    )
    lengths = (work.seq_len,)
    requirements = RunRequirements(work.model, work.precision, "adamw", parallel, lengths)
    return fit(requirements, Sizes(), Machine(1, 1, 1 << 50, work.device)).memory


def launches(recorder: Recorder) -> None:
    """Measures the host's time per layer, with a model as deep as Danube-1.8B, but narrow."""
    context: Context = recorder.context
    for precision in ("bf16", "fp8"):
        recorder.measure(f"launches, {precision}", host_seconds, precision, context, needs=10)


def host_seconds(precision: str, context: Context) -> dict[str, Any]:
    """Returns the seconds per layer of a compiled step that is bound by its launches."""
    work = work_of("danube_1_8b", 128, 1, context, precision)
    narrow: dict[str, Any] = {"hidden_size": 256, "intermediate_size": 512, "vocab_size": 512}
    heads: dict[str, Any] = {"num_heads": 4, "num_kv_heads": 2, "head_dim": 64}
    work = replace(work, model=replace(work.model, **narrow, **heads), batch=1)
    seconds = 0.0 if context.tiny else MEASURED_SECONDS / 2
    found = measure("ours", work, seconds)
    step = work.batch * work.seq_len / found["tokens_per_second"]
    return {
        "precision": precision,
        "step_seconds": step,
        "layer_seconds": step / work.model.num_layers,
        "compiled": work.compiled,
    }


def profiles(recorder: Recorder) -> None:
    """Profiles two steps of Danube-1.8B in bf16 and in fp8."""
    for precision in ("bf16", "fp8"):
        work = work_of("danube_1_8b", 2048, 16, recorder.context, precision)
        title = f"profile: Danube-1.8B, 2048, {precision}"
        recorder.measure(title, profile_figures, work, recorder.context, needs=15)


def profile_figures(work: Work, context: Context) -> dict[str, Any]:
    """Returns the kernels of a step, the time without any, and the host's time."""
    return with_fitting_batch(work, partial(profile_of, context=context))


def profile_of(work: Work, context: Context) -> dict[str, Any]:
    """Returns the figures of one step, as means over the profiled steps."""
    from torch.autograd import DeviceType

    step, work = started("ours", work)
    events = profiled(step, work.device).events()
    wanted = DeviceType.CUDA if work.device == "cuda" else DeviceType.CPU
    kernels = [e for e in events if e.device_type == wanted and e.time_range.elapsed_us() > 0]
    step()
    context.wait()
    began = time.perf_counter()
    step()
    queued = time.perf_counter() - began
    context.wait()
    return {
        "batch": work.batch,
        "step_seconds": time.perf_counter() - began,
        "host_seconds": queued,
        **kernel_figures((e.name, e.time_range.start, e.time_range.end) for e in kernels),
    }


def kernel_figures(kernels: Iterable[tuple[str, float, float]]) -> dict[str, Any]:
    """Returns busy seconds, gaps and the longest kernels per step. Times are in microseconds."""
    ordered = sorted(kernels, key=lambda kernel: kernel[1])
    if not ordered:
        return {"kernels": 0}
    total: dict[str, float] = defaultdict(float)
    count: dict[str, int] = defaultdict(int)
    busy, end = 0.0, ordered[0][1]
    for name, start, stop in ordered:
        busy += max(0.0, stop - max(start, end))
        end = max(end, stop)
        total[name] += stop - start
        count[name] += 1
    span = end - ordered[0][1]
    longest = sorted(total, key=lambda name: -total[name])[:TOP_KERNELS]
    return {
        "kernels": len(ordered) // PROFILED_STEPS,
        "busy_seconds": busy / PROFILED_STEPS / 1e6,
        "gap_share": 1 - busy / span,
        "top": [
            {
                "kernel": name[:90],
                "count": count[name] // PROFILED_STEPS,
                "share": total[name] / sum(total.values()),
            }
            for name in longest
        ],
    }
