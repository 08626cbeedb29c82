"""Context parallelism: the sequences of a batch spread over processes, applied from outside.

Each process has some positions of every sequence and fetches, once a layer, the keys and values
that its queries see; the gradients go back the same way.

- With a sliding window W a process has neighbouring positions and needs W - 1 more, the last ones
  of its left neighbours: a halo, whose size does not depend on the sequence's length.
- With full attention it needs all keys and values, few under grouped-query attention. The first
  positions see less than the last: of 2 * cp pieces, process i has piece i and the i-th from the
  end, so that all have the same work (Llama 3, arXiv 2407.21783, section 3.3.2).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed._functional_collectives import (
    all_gather_tensor,
    all_gather_tensor_autograd,
    all_to_all_single_autograd,
    wait_tensor,
)
from torch.distributed.device_mesh import DeviceMesh

from model.attention.backends import visible_keys
from model.sequences import Part

Spans = list[tuple[int, int, int]]
"""First position, end, first key that is needed."""


class ContextParallel:
    """What a process of the one-dimensional `mesh` has of the sequences, as `model.sequences`
    wants it. Sequence lengths are multiples of 2 * mesh.size()."""

    def __init__(self, mesh: DeviceMesh) -> None:
        self.size = mesh.size()
        self.rank = mesh.get_local_rank()
        self.group = mesh.get_group()
        self._plans: dict[tuple[int, int | None, torch.device], _Plan] = {}

    def part(
        self,
        backend: str,
        window: int | None,
        tokens: Tensor,
        labels: Tensor | None,
        cu_seqlens: Tensor | None,
    ) -> Part:
        """The positions of this process of tokens and labels (batch, seq)."""
        batch, seq = tokens.shape
        window = None if window is None or window >= seq else window
        plan = self._plan(seq, window, tokens.device)
        visible = visible_keys(
            backend, batch, seq, window, cu_seqlens, tokens.device, spans=plan.spans
        )
        visible.fetch = plan.fetch
        here = tokens.index_select(1, plan.positions)
        labels = None if labels is None else labels.index_select(1, plan.positions)
        return Part(here, labels, plan.positions, visible)

    def whole(self, output: Tensor) -> Tensor:
        """The sums of all parts' losses, or the logits of all positions in their order."""
        if output.ndim < 3:
            return _Total.apply(output, self.group)
        seq = output.shape[1] * self.size
        gathered = all_gather_tensor(output.contiguous(), 1, self.group)
        plan = next(p for (length, *_), p in self._plans.items() if length == seq)
        return gathered.index_select(1, plan.order)

    def _plan(self, seq: int, window: int | None, device: torch.device) -> _Plan:
        key = (seq, window, device)
        if key not in self._plans:
            self._plans[key] = _Plan(self, seq, window, device)
        return self._plans[key]


class _Plan:
    """Who has and who needs which positions of sequences of a length, as index tensors that are on
    the device once and for all.

    spans: of this process; positions: (seq / cp,) of this process; order: (seq,) where each
    position is once the parts of all processes lie one after the other.
    """

    def __init__(
        self, group: ContextParallel, seq: int, window: int | None, device: torch.device
    ) -> None:
        self.group = group.group
        spans = [_spans(rank, group.size, seq, window) for rank in range(group.size)]
        self.spans = spans[group.rank]
        positions = [[p for start, end, _ in s for p in range(start, end)] for s in spans]
        self.positions = torch.tensor(positions[group.rank], device=device)
        self.order = torch.tensor(positions, device=device).flatten().argsort()
        self.fetch: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
        if window is None:
            self.fetch = self._all
            return
        # Of every pair of processes, the positions that the first has and the second needs.
        length = seq // group.size
        (mine, _, _) = self.spans[0]
        sends, receives = [], []
        for other in range(group.size):
            theirs, _, first = spans[other][0]
            sends.append(list(range(max(first, mine), min(theirs, mine + length))))
            first_of_mine = self.spans[0][2]
            receives.append(max(0, min(mine, theirs + length) - max(first_of_mine, theirs)))
        self.sent = [len(positions) for positions in sends]
        self.received = receives
        local = [position - mine for positions in sends for position in positions]
        self.send = torch.tensor(local, dtype=torch.int64, device=device)
        self.fetch = self._halo

    def _all(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """k, v (batch, seq / cp, kv_heads, head_dim) -> (batch, seq, kv_heads, head_dim)."""
        both = torch.cat((k, v), dim=-1)
        gathered = wait_tensor(all_gather_tensor_autograd(both, 1, self.group))
        k, v = gathered.index_select(1, self.order).chunk(2, dim=-1)
        return k, v

    def _halo(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """k, v (batch, seq / cp, kv_heads, head_dim) -> the same with up to W - 1 positions of
        left neighbours before them."""
        both = torch.cat((k, v), dim=-1)
        sent = both.transpose(0, 1).index_select(0, self.send)
        received = wait_tensor(
            all_to_all_single_autograd(sent, self.received, self.sent, self.group)
        )
        k, v = torch.cat((received.transpose(0, 1), both), dim=1).chunk(2, dim=-1)
        return k, v


def _spans(rank: int, size: int, seq: int, window: int | None) -> Spans:
    if window is None:
        piece = seq // (2 * size)
        starts = (rank * piece, (2 * size - 1 - rank) * piece)
        return [(start, start + piece, 0) for start in starts]
    start = rank * (seq // size)
    return [(start, start + seq // size, max(0, start - window + 1))]


class _Total(torch.autograd.Function):
    """The sum over processes; each takes the gradient of its own part."""

    @staticmethod
    def forward(ctx: Any, loss: Tensor, group: dist.ProcessGroup) -> Tensor:
        total = loss.clone()
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None
