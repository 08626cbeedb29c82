"""An exponential moving average of weights that are being trained.

Entry n of the average has the weight (1 - decay) * decay^(N - n) / (1 - decay^N) after N entries.
The divisor makes the weights sum to 1, so that the average does not contain the random weights of
step 0. Entry n is thus added at the rate (1 - decay) / (1 - decay^n):

    average += rate * (weights - average)

The number of entries and the rate are tensors on the device, because only the device knows whether
a step was skipped when the next one is queued.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor


class RunningAverage:
    """The average of a model's parameters, with the sharding of each parameter.

    tensors: the average by name of the parameter.
    entries: number of entries in the average, a 0-d float64 tensor.
    """

    def __init__(
        self, parameters: Iterable[tuple[str, Tensor]], decay: float, device: torch.device
    ) -> None:
        self.decay = decay
        self._parameters = dict(parameters)
        self.tensors = {name: _copy(value, device) for name, value in self._parameters.items()}
        self.entries = torch.zeros((), dtype=torch.float64, device=device)

    @torch.no_grad()
    def add(self, skipped: Tensor) -> None:
        """Adds the current weights to the average, without waiting for the device.

        skipped: 1 on the device if the step was skipped, so that nothing is added; else 0.
        """
        self._add(_local(self._parameters.values()), 1 - skipped)

    def _add(self, weights: list[Tensor], added: Tensor) -> None:
        self.entries += added
        rate = added * (1 - self.decay) / (1 - self.decay ** self.entries.clamp(min=1))
        averages = _local(self.tensors.values())
        rates = [rate.to(weights[0].dtype)] * len(weights)
        torch._foreach_lerp_(averages, weights, rates)

    @torch.no_grad()
    def reset(self) -> None:
        """Removes all entries. Until the next entry, the average equals the current weights."""
        self.wait()
        self.entries.zero_()
        for average, weight in self._pairs():
            average.copy_(weight)

    @contextmanager
    def in_model(self) -> Iterator[None]:
        """Exchanges weights and average, and exchanges them back on exit, without changing a bit.

        The caller must free all copies of the weights that FSDP2 has gathered, before and inside.
        """
        self.wait()
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        for average, weight in self._pairs():
            kept = weight.clone()
            weight.copy_(average)
            average.copy_(kept)

    def _pairs(self) -> Iterable[tuple[Tensor, Tensor]]:
        return zip(_local(self.tensors.values()), _local(self._parameters.values()), strict=True)

    def wait(self) -> None:
        """Waits until all entries are in `tensors`."""

    def before_update(self) -> None:
        """Lets no update change weights that are still being copied. No host waits."""


class HostAverage(RunningAverage):
    """An average in the host's memory of weights on a GPU.

    An entry is copied to pinned memory on a stream of its own while the next step computes, and a
    thread adds it to the average. So the device needs no memory, and no step waits for the host.
    """

    def __init__(self, parameters: Iterable[tuple[str, Tensor]], decay: float) -> None:
        super().__init__(parameters, decay, torch.device("cpu"))
        weights = _local(self._parameters.values())
        self._stream = torch.cuda.Stream(weights[0].device)
        self._copied: torch.cuda.Event | None = None
        self._buffers = [_pinned(weight) for weight in weights]
        self._skipped = _pinned(torch.empty(()))
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="ema")
        self._adding: Future[None] | None = None

    @torch.no_grad()
    def add(self, skipped: Tensor) -> None:
        """Starts to copy the current weights, which a thread adds to the average."""
        self.wait()  # for an entry that is `ema.every_steps` steps old
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            weights = _local(self._parameters.values())
            for buffer, weight in zip(self._buffers, weights, strict=True):
                buffer.copy_(weight, non_blocking=True)
            self._skipped.copy_(skipped, non_blocking=True)
            skipped.record_stream(self._stream)
            self._copied = torch.cuda.Event(blocking=True)
            self._copied.record()
        self._adding = self._thread.submit(self._add_copy, self._copied)

    @torch.no_grad()
    def _add_copy(self, copied: torch.cuda.Event) -> None:
        copied.synchronize()
        self._add(self._buffers, 1 - self._skipped)

    def wait(self) -> None:
        """Waits until all entries are in `tensors`."""
        adding, self._adding = self._adding, None
        if adding is not None:
            adding.result()

    def before_update(self) -> None:
        """Makes the device finish the copy of an entry before the update of the weights."""
        copied, self._copied = self._copied, None
        if copied is not None:
            torch.cuda.current_stream().wait_event(copied)


def build(
    parameters: Iterable[tuple[str, Tensor]], decay: float, kept_on: str, device: torch.device
) -> RunningAverage:
    """Returns an average without entries. kept_on: `ema.device`; device: that of the run."""
    if kept_on == "cpu" and device.type == "cuda":
        return HostAverage(parameters, decay)
    return RunningAverage(parameters, decay, device)


def _copy(value: Tensor, device: torch.device) -> Tensor:
    """Returns a copy of a parameter with the same sharding."""
    value = value.detach()
    return value.clone() if value.device.type == device.type else value.to(device)


def _pinned(like: Tensor) -> Tensor:
    """Returns an empty tensor in pinned memory."""
    return torch.empty(like.shape, dtype=like.dtype, pin_memory=True)


def _local(tensors: Iterable[Tensor]) -> list[Tensor]:
    """Returns this rank's shard of each tensor."""
    return [t.to_local().detach() if isinstance(t, DTensor) else t.detach() for t in tensors]
