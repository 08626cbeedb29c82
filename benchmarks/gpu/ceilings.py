"""Versions of the machine, and the rates that bound every step: products, copies, launches."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.gpu.context import Context
from benchmarks.gpu.worker import Recorder
from benchmarks.machine import machine


def ceilings(recorder: Recorder) -> None:
    """Measures the ceilings of the device."""
    context: Context = recorder.context
    recorder.measure("machine", machine, context.device.type)
    recorder.measure("bf16 product", product, context)
    recorder.measure("fp8 product", fp8_product, context)
    recorder.measure("copy", copy, context)
    recorder.measure("launch", launch, context)


def product(context: Context) -> dict[str, Any]:
    """Measures a large bf16 matrix product of random numbers."""
    size = 512 if context.tiny else 8192
    a, b = (torch.randn(size, size, device=context.device).bfloat16() for _ in range(2))
    return rate(context, size, lambda: a @ b)


def fp8_product(context: Context) -> dict[str, Any]:
    """Measures the same product in fp8 with one scale per matrix."""
    if context.device.type == "cpu":
        return {"skipped": "fp8 products are emulated on a CPU"}
    size = 512 if context.tiny else 8192
    a, b = (
        torch.randn(size, size, device=context.device).to(torch.float8_e4m3fn) for _ in range(2)
    )
    one = torch.ones((), device=context.device)
    return rate(
        context,
        size,
        lambda: torch._scaled_mm(a, b.t(), one, one, out_dtype=torch.bfloat16, use_fast_accum=True),
    )


def rate(context: Context, size: int, work: Callable[[], Any]) -> dict[str, Any]:
    """Returns the TFLOP/s of a product of two square matrices."""
    return {"tflops": 2 * size**3 / context.seconds(work) / 1e12, "size": size}


def copy(context: Context) -> dict[str, Any]:
    """Measures a copy within the device; bytes read and bytes written both count."""
    count = 1 << (20 if context.tiny else 32)
    source = torch.ones(count, dtype=torch.uint8, device=context.device)
    target = torch.empty_like(source)
    return {"gb_per_second": 2 * count / context.seconds(lambda: target.copy_(source)) / 1e9}


def launch(context: Context) -> dict[str, Any]:
    """Measures the host's seconds to launch one small kernel, from a queue that never fills."""
    x = torch.ones(8, device=context.device)
    x.add_(1)
    context.wait()
    found = []
    for _ in range(5):
        began = time.perf_counter()
        for _ in range(200):
            x.add_(1)
        found.append((time.perf_counter() - began) / 200)
        context.wait()
    return {"launch_seconds": min(found)}
