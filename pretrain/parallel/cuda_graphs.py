"""Replays a micro-batch as one CUDA graph, for models so small that launching kernels takes longer.

A compiled micro-batch of a model with 12 layers is about 800 kernels. Python, autograd and FSDP2
need tens of milliseconds to launch them, however few tokens there are. A graph holds the forward
and the backward pass of a micro-batch, and is launched at once:

    first micro-batch of a kind     runs without a graph, which compiles and allocates
    second                          is captured, then replayed
    others                          are copied to where the graph reads its inputs, and replayed

A graph fixes everything but the numbers in its input tensors: shapes, addresses, and Python values.
So there is one graph for each combination of these. Weights, gradients and inputs must keep their
addresses: the optimizer updates weights in place, and a step does not allocate its gradients, but
sets those of the first step to zero.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from data_pipeline.sampling.batches import Batch

MAX_GRAPHS = 32
"""Maximum number of graphs per stage. Further kinds of micro-batches run without one."""

STREAMS = (
    "all_gather_copy_in_stream",
    "all_gather_stream",
    "reduce_scatter_stream",
    "all_reduce_stream",
)
"""FSDP2's streams, which are not public; tests/hollow captures them in each version of torch."""

Outputs = tuple[Tensor, ...]
RunMicroBatch = Callable[[Batch, float], Outputs]
"""Runs the forward and backward pass of a batch, whose loss is multiplied by a weight."""


@dataclass
class _Captured:
    """A graph, and the tensors that it reads and writes."""

    graph: torch.cuda.CUDAGraph
    batch: Batch
    outputs: Outputs


class CudaGraphs:
    """Runs micro-batches, and replays those of a kind that it has captured.

    model: model of a single process, whose gradients are reduced in every micro-batch.
    run: function that runs a micro-batch without a graph.
    """

    def __init__(self, model: nn.Module, run: RunMicroBatch) -> None:
        self.model, self.run = model, run
        self.stage = ""
        self._gradients: dict[nn.Parameter, Tensor] = {}
        self._graphs: dict[Hashable, _Captured] = {}
        self._seen: set[Hashable] = set()
        self._pool: Any = None

    def __call__(self, batch: Batch, weight: float, is_first: bool, stage: str) -> Outputs:
        """Returns what `run` returns, in tensors that the next call overwrites.

        is_first: whether the batch is the first of a step, before which there are no gradients.
        stage: name of the stage. A new one drops all graphs, because its network may differ.
        """
        if stage != self.stage:
            self.stage = stage
            self._graphs, self._seen, self._pool = {}, set(), None
        if is_first:
            self._restore_gradients()
        kind = (kind_of(batch), weight)
        captured = self._graphs.get(kind)
        if captured is None:
            if kind not in self._seen or len(self._graphs) == MAX_GRAPHS:
                self._seen.add(kind)
                outputs = self.run(batch, weight)
                if not self._gradients:
                    found = {p: p.grad for p in self.model.parameters()}
                    self._gradients = {p: g for p, g in found.items() if g is not None}
                return outputs
            captured = self._graphs[kind] = self._capture(batch, weight)
        for into, value in zip(tensors(captured.batch), tensors(batch), strict=True):
            into.copy_(value)
        captured.graph.replay()
        return captured.outputs

    def _restore_gradients(self) -> None:
        """Gives all parameters the gradients that the graphs add to, with the value zero."""
        for parameter, gradient in self._gradients.items():
            parameter.grad = gradient
        if self._gradients:
            torch._foreach_zero_([local(gradient) for gradient in self._gradients.values()])

    def _capture(self, batch: Batch, weight: float) -> _Captured:
        """Records the kernels of a micro-batch, without running them."""
        static = replace(batch, **{name: getattr(batch, name).clone() for name in names(batch)})
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        # Other threads, such as the loader's, may allocate pinned memory during the capture.
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            outputs = self.run(static, weight)
            join_streams(self.model)
        return _Captured(graph, static, outputs)


def local(tensor: Tensor) -> Tensor:
    """Returns this rank's shard of a tensor, or the tensor itself if it is not sharded."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def kind_of(batch: Batch) -> Hashable:
    """Returns the shapes of the tensors of a batch, and its numbers that kernels are launched with.

    NumPy arrays are not part of it, because only records use them.
    """
    values = [getattr(batch, field.name) for field in fields(batch)]
    return tuple(
        tuple(value.shape) if isinstance(value, Tensor) else value
        for value in values
        if isinstance(value, Tensor | int | None)
    )


def names(batch: Batch) -> list[str]:
    """Returns the names of the fields of a batch that are tensors."""
    return [f.name for f in fields(batch) if isinstance(getattr(batch, f.name), Tensor)]


def tensors(batch: Batch) -> list[Tensor]:
    """Returns the tensors of a batch."""
    return [getattr(batch, name) for name in names(batch)]


def join_streams(model: nn.Module) -> None:
    """Lets the current stream wait for FSDP2's streams, as the end of a capture requires."""
    context = model._get_fsdp_state()._comm_ctx  # type: ignore[operator]
    for name in STREAMS:
        stream = getattr(context, name)
        with torch.cuda.stream(stream):
            is_part = torch.cuda.is_current_stream_capturing()
        if is_part:
            torch.cuda.current_stream().wait_stream(stream)
