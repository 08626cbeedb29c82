"""Context parallelism: the sequences of a batch are split over ranks.

Each rank computes some positions of every sequence. Once per layer, it receives the keys and values
that its queries attend to, and the backward pass returns their gradients the same way. All layers
use the same positions, and each fetches no more than its window needs (`pretrain.sequence_layout`).
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

from model.attention.mask import attention_mask, effective_window
from model.sequence_sharding import LocalBatch
from pretrain.sequence_layout import (
    Intervals,
    common,
    gathers_all,
    length,
    needed_keys,
    own_positions,
    query_ranges,
    with_window,
)

Fetch = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Maps this rank's keys and values to those that its queries need."""


class ContextParallel:
    """The sequence sharding of a decoder over a one-dimensional mesh.

    Sequence lengths must be multiples of 2 * mesh.size().

    Args:
        mesh: The ranks that share each sequence.
        windows: Windows of the layers of another decoder, whose positions this one shall have;
            None to choose the positions by the decoder's own windows.
    """

    def __init__(self, mesh: DeviceMesh, windows: Collection[int | None] | None = None) -> None:
        self.windows = windows
        self.size = mesh.size()
        self.rank = mesh.get_local_rank()
        self.group = mesh.get_group()
        self._splits: dict[tuple[int, bool, torch.device], _Split] = {}

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
        effective = {window: effective_window(window, seq) for window in windows}
        split = self._split(windows, seq, tokens.device)
        masks = {}
        for window, reach in effective.items():
            ranges = with_window(split.ranges, reach)
            offset, fetch = split.fetch(reach)
            masks[window] = attention_mask(
                backend,
                batch,
                seq,
                window,
                cu_seqlens,
                tokens.device,
                ranges,
                [offset(part.first_key) for part in ranges],
                dtype,
                max_seqlen,
            )
            masks[window].fetch = fetch
        local_tokens = tokens.index_select(1, split.positions)
        labels = None if labels is None else labels.index_select(1, split.positions)
        return LocalBatch(local_tokens, labels, split.positions, masks)

    def positions(self, windows: Collection[int | None], seq: int, device: torch.device) -> Tensor:
        """Returns the positions, (seq / cp,), of a sequence that this rank computes."""
        return self._split(windows, seq, device).positions

    def combine(self, output: Tensor) -> Tensor:
        """Returns the sum of all ranks' losses, or the logits of all positions in order."""
        if output.ndim < 3:
            return _AllReduce.apply(output, self.group)
        seq = output.shape[1] * self.size
        gathered = all_gather_tensor(output.contiguous(), 1, self.group)
        split = next(s for (found, *_), s in self._splits.items() if found == seq)
        return gathered.index_select(1, split.order)

    def _split(self, windows: Collection[int | None], seq: int, device: torch.device) -> _Split:
        chosen = windows if self.windows is None else self.windows
        balanced = any(effective_window(window, seq) is None for window in chosen)
        key = (seq, balanced, device)
        if key not in self._splits:
            self._splits[key] = _Split(self, seq, balanced, device)
        return self._splits[key]


class _Split:
    """The split of sequences of one length, with its index tensors on the device.

    Attributes:
        ranges: The queries of this rank.
        positions: (seq / cp,) positions of this rank.
        order: (seq,) index of each position in the concatenation of all ranks' positions.
    """

    def __init__(
        self, parallel: ContextParallel, seq: int, balanced: bool, device: torch.device
    ) -> None:
        self.group, self.rank, self.seq, self.balanced = (
            parallel.group,
            parallel.rank,
            seq,
            balanced,
        )
        size = parallel.size
        self.of_ranks = [query_ranges(rank, size, seq, balanced) for rank in range(size)]
        self.ranges = self.of_ranks[self.rank]
        own = [own_positions(ranges) for ranges in self.of_ranks]
        self.positions = _indices(own[self.rank], device)
        self.order = torch.cat([_indices(positions, device) for positions in own]).argsort()
        self._halos: dict[int, _Halo] = {}

    def fetch(self, window: int | None) -> tuple[Callable[[int], int], Fetch]:
        """Returns how layers with a window get keys and values.

        These are a function from a position to its index among the fetched keys, and a function
        from this rank's keys and values to all that its queries need.
        """
        size = len(self.of_ranks)
        if window is None or gathers_all(size, self.seq, self.balanced, window):
            return int, self.gather_all
        if window not in self._halos:
            self._halos[window] = _Halo(self, window)
        return self._halos[window].index, self._halos[window].exchange

    def gather_all(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Maps k, v (batch, seq / cp, kv_heads, head_dim) to (batch, seq, kv_heads, head_dim)."""
        both = torch.cat((k, v), dim=-1)
        gathered = wait_tensor(all_gather_tensor_autograd(both, 1, self.group))
        k, v = gathered.index_select(1, self.order).chunk(2, dim=-1)
        return k, v


class _Halo:
    """The exchange of keys and values of layers with a window.

    Attributes:
        keys: Positions of the keys that this rank's queries need.
        sent: Number of positions that each rank receives from this one.
        received: Number of positions that this rank receives from each.
        send: Indices of the sent positions among this rank's, for one rank after the other.
        order: Index of each key among the received and this rank's own, which follow them; None if
            they are in order.
    """

    def __init__(self, split: _Split, window: int) -> None:
        self.group, device = split.group, split.positions.device
        own = [own_positions(ranges) for ranges in split.of_ranks]
        needed = [needed_keys(with_window(ranges, window)) for ranges in split.of_ranks]
        self.keys = needed[split.rank]
        self.order: Tensor | None
        sends, receives = [], []
        for rank in range(len(own)):
            is_other = rank != split.rank
            sends.append(common(needed[rank], own[split.rank]) if is_other else [])
            receives.append(common(self.keys, own[rank]) if is_other else [])
        self.sent, self.received = [length(part) for part in sends], [length(p) for p in receives]
        positions = torch.cat([_indices(part, device) for part in sends])
        self.send = torch.searchsorted(split.positions, positions)
        parts = [*receives, own[split.rank]]
        starts = [start for part in parts for start, _ in part]
        if starts == sorted(starts):  # known without waiting for the device
            self.order = None
        else:
            self.order = torch.cat([_indices(part, device) for part in parts]).argsort()

    def index(self, position: int) -> int:
        """Returns the index of a key's position among the fetched keys."""
        return length(common(self.keys, [(0, position)]))

    def exchange(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Maps k, v (batch, seq / cp, kv_heads, head_dim) to those at the positions `keys`."""
        both = torch.cat((k, v), dim=-1)
        sent = both.transpose(0, 1).index_select(0, self.send)
        received = wait_tensor(
            all_to_all_single_autograd(sent, self.received, self.sent, self.group)
        )
        both = torch.cat((received.transpose(0, 1), both), dim=1)
        if self.order is not None:
            both = both.index_select(1, self.order)
        k, v = both.chunk(2, dim=-1)
        return k, v


def _indices(intervals: Intervals, device: torch.device) -> Tensor:
    """Returns the positions of intervals as a tensor."""
    parts = [torch.arange(start, end, device=device) for start, end in intervals]
    return torch.cat(parts) if parts else torch.empty(0, dtype=torch.int64, device=device)


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
