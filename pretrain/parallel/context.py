"""Context parallelism: the sequences of a batch are split over ranks.

Each rank computes some positions of every sequence. Once per layer, it receives the keys and values
that its queries attend to, and the backward pass returns their gradients the same way. All layers
use the same split of positions:

- If every layer has a sliding window, each rank has contiguous positions. It also needs the W - 1
  keys before its own, which its left neighbors have, where W is the widest window. This halo does
  not grow with the sequence. With 2 ranks, 8 tokens and W = 3:

      rank 0: 0 1 2 3                 receives nothing
      rank 1: 4 5 6 7                 receives keys 2 3

- If any layer has full attention, every rank gathers all keys and values, which are small with
  grouped-query attention. Early positions attend to fewer keys than late ones, so each rank gets
  one piece from the start and one from the end, which balances the work (Llama 3, arXiv 2407.21783,
  section 3.3.2):

      rank 0: 0 1         6 7         gathers keys 0 to 7
      rank 1:     2 3 4 5             gathers keys 0 to 7
"""

from __future__ import annotations

from collections.abc import Callable, Collection
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

from model.attention.mask import QueryRange, attention_mask, effective_window
from model.sequence_sharding import LocalBatch


class ContextParallel:
    """The sequence sharding of a decoder over a one-dimensional mesh.

    Sequence lengths must be multiples of 2 * mesh.size().
    """

    def __init__(self, mesh: DeviceMesh) -> None:
        self.size = mesh.size()
        self.rank = mesh.get_local_rank()
        self.group = mesh.get_group()
        self._splits: dict[tuple[int, int | None, torch.device], _Split] = {}

    def local(
        self,
        backend: str,
        windows: Collection[int | None],
        tokens: Tensor,
        labels: Tensor | None,
        cu_seqlens: Tensor | None,
        max_seqlen: int | None,
        dtype: torch.dtype,
    ) -> LocalBatch:
        """Returns this rank's part of tokens and labels (batch, seq), with its masks."""
        batch, seq = tokens.shape
        effective = [effective_window(window, seq) for window in windows]
        widest = None if None in effective else max(w for w in effective if w is not None)
        split = self._split(seq, widest, tokens.device)
        masks = {}
        for window in windows:
            ranges = _with_window(split.ranges, effective_window(window, seq))
            masks[window] = attention_mask(
                backend,
                batch,
                seq,
                window,
                cu_seqlens,
                tokens.device,
                ranges,
                split.first_key,
                dtype,
                max_seqlen,
            )
            masks[window].fetch = split.fetch
        local_tokens = tokens.index_select(1, split.positions)
        labels = None if labels is None else labels.index_select(1, split.positions)
        return LocalBatch(local_tokens, labels, split.positions, masks)

    def combine(self, output: Tensor) -> Tensor:
        """Returns the sum of all ranks' losses, or the logits of all positions in order."""
        if output.ndim < 3:
            return _AllReduce.apply(output, self.group)
        seq = output.shape[1] * self.size
        gathered = all_gather_tensor(output.contiguous(), 1, self.group)
        split = next(s for (length, *_), s in self._splits.items() if length == seq)
        return gathered.index_select(1, split.order)

    def _split(self, seq: int, window: int | None, device: torch.device) -> _Split:
        key = (seq, window, device)
        if key not in self._splits:
            self._splits[key] = _Split(self, seq, window, device)
        return self._splits[key]


class _Split:
    """The split of sequences of one length, with its index tensors on the device.

    Attributes:
        ranges: The queries of this rank.
        first_key: Position of the first key that `fetch` returns.
        positions: (seq / cp,) positions of this rank.
        order: (seq,) index of each position in the concatenation of all ranks' positions.
        fetch: Maps this rank's keys and values to all keys and values that its queries need.
    """

    def __init__(
        self, parallel: ContextParallel, seq: int, window: int | None, device: torch.device
    ) -> None:
        self.group = parallel.group
        of_ranks = [_ranges(rank, parallel.size, seq, window) for rank in range(parallel.size)]
        self.ranges = of_ranks[parallel.rank]
        self.first_key = min(part.first_key for part in self.ranges)
        positions = [
            [position for part in ranges for position in range(part.start, part.end)]
            for ranges in of_ranks
        ]
        self.positions = torch.tensor(positions[parallel.rank], device=device)
        self.order = torch.tensor(positions, device=device).flatten().argsort()
        self.fetch: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
        if window is None:
            self.fetch = self._gather_all
            return
        # For each other rank, find the positions to send to it and the number to receive from it.
        (own,) = self.ranges
        sends, receives = [], []
        for (other,) in of_ranks:
            sends.append(list(range(max(other.first_key, own.start), min(other.start, own.end))))
            first, last = max(own.first_key, other.start), min(own.start, other.end)
            receives.append(max(0, last - first))
        self.sent = [len(positions) for positions in sends]
        self.received = receives
        local = [position - own.start for positions in sends for position in positions]
        self.send = torch.tensor(local, dtype=torch.int64, device=device)
        self.fetch = self._exchange_halo

    def _gather_all(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Maps k, v (batch, seq / cp, kv_heads, head_dim) to (batch, seq, kv_heads, head_dim)."""
        both = torch.cat((k, v), dim=-1)
        gathered = wait_tensor(all_gather_tensor_autograd(both, 1, self.group))
        k, v = gathered.index_select(1, self.order).chunk(2, dim=-1)
        return k, v

    def _exchange_halo(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Prepends up to W - 1 positions of left neighbors to k, v (batch, seq / cp, ...)."""
        both = torch.cat((k, v), dim=-1)
        sent = both.transpose(0, 1).index_select(0, self.send)
        received = wait_tensor(
            all_to_all_single_autograd(sent, self.received, self.sent, self.group)
        )
        k, v = torch.cat((received.transpose(0, 1), both), dim=1).chunk(2, dim=-1)
        return k, v


def _ranges(rank: int, size: int, seq: int, window: int | None) -> list[QueryRange]:
    """Returns the query ranges of a rank, with the first key that each needs."""
    if window is None:
        piece = seq // (2 * size)
        starts = (rank * piece, (2 * size - 1 - rank) * piece)
        return [QueryRange(start, start + piece, 0) for start in starts]
    start = rank * (seq // size)
    return _with_window([QueryRange(start, start + seq // size, 0)], window)


def _with_window(ranges: list[QueryRange], window: int | None) -> list[QueryRange]:
    """Returns the query ranges, each with the first key that it needs under the given window."""
    if window is None:
        return ranges
    return [part._replace(first_key=max(0, part.start - window + 1)) for part in ranges]


class _AllReduce(torch.autograd.Function):
    """A sum over ranks whose gradient goes to each rank's own part only."""

    @staticmethod
    def forward(ctx: Any, loss: Tensor, group: dist.ProcessGroup) -> Tensor:
        total = loss.clone()
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None
