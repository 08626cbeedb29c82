"""Reads the numbers of a step and measures its time, without waiting for the next step.

A GPU works through a queue, so it runs behind the host. The numbers of step n - 1 are published
while step n is in the queue, which keeps the device busy meanwhile:

    device   | step n - 1        copy | step n            copy | step n + 1
    host        queue n | wait for the copy of n - 1, publish n - 1 | queue n + 1 | wait for ...

`.item()` on a number of step n - 1 would be queued behind step n and wait for it too, and the
device would then be idle while the host publishes and queues. So each step ends with a copy of its
numbers to pinned memory, and `read` waits for that copy alone. Times of steps are differences
between the moments at which the device reaches their ends.

On a CPU the host computes a step itself, and the same code reads tensors and the host's clock.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

Moment = Any
"""Seconds of the host's clock (float), or a CUDA event that the device reaches."""


@dataclass(frozen=True)
class Lap:
    """A span of work on the device."""

    begin: Moment
    end: Moment

    def seconds(self) -> float:
        """Returns the duration, once the device has reached the end of the lap."""
        if isinstance(self.begin, float):
            return self.end - self.begin
        return self.begin.elapsed_time(self.end) / 1e3


class LapClock:
    """Divides the work of a device into laps. It never waits for the device."""

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self.restart()

    def restart(self) -> None:
        """Begins a lap here, behind all work that is queued."""
        self._begin = self._now()

    def lap(self) -> Lap:
        """Ends the current lap behind all work that is queued, and begins the next one."""
        begin, self._begin = self._begin, self._now()
        return Lap(begin, self._begin)

    def _now(self) -> Moment:
        if not self._on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


class HostCopy:
    """Copies of tensors on the host, queued behind the work that computes the tensors."""

    def __init__(self, *tensors: Tensor) -> None:
        # The copies are in pinned memory if the tensors are on a GPU.
        self._copies = [tensor.to("cpu", non_blocking=True) for tensor in tensors]
        self._done: torch.cuda.Event | None = None
        if tensors[0].is_cuda:
            self._done = torch.cuda.Event(blocking=True)
            self._done.record()

    def read(self) -> list[Tensor]:
        """Returns the copies. The host waits for them, but for nothing that was queued later."""
        if self._done is not None:
            self._done.synchronize()
        return self._copies


class Numbers(NamedTuple):
    """The numbers of a step on the host; see `StepNumbers`."""

    counts: list[int]
    sums: list[float]
    grad_norm: float
    verdict: float


class StepNumbers:
    """The numbers of a step, which `read` returns once they are on the host.

    Args:
        counts: int64 tensor, the `counts` of `pretrain.loader.StepData` over all data-parallel
            ranks.
        sums: (sources + metrics,) float32, the summed loss per source, then the sums of the
            objective's metrics.
        grad_norm: float32 scalar.
        verdict: float32 scalar, the verdict of `health.bad_steps`.
    """

    def __init__(self, counts: Tensor, sums: Tensor, grad_norm: Tensor, verdict: Tensor) -> None:
        self._copy = HostCopy(counts, torch.cat((sums, grad_norm[None], verdict[None])))

    def bits(self) -> Tensor:
        """Returns the bits of all numbers as an int32 tensor; see `HostCopy.read`."""
        return torch.cat([tensor.view(torch.int32) for tensor in self._copy.read()])

    def read(self) -> Numbers:
        """Returns the numbers; see `HostCopy.read`."""
        counts, values = self._copy.read()
        *sums, grad_norm, verdict = values.tolist()
        return Numbers(counts.tolist(), sums, grad_norm, verdict)
