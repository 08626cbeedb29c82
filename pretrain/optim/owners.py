"""Assigns each matrix to one rank, and moves its parts from all ranks to this owner and back.

An optimizer such as Muon needs whole matrices, but FSDP2 and tensor parallelism shard them. Each
matrix gets one owner, so that no two ranks compute the same update. Example with four matrices of
one shape on two ranks, which hold the upper and the lower half of each matrix:

    rank 0    A0 B0 C0 D0    gather ->    A B    scatter ->    A0 B0 C0 D0
    rank 1    A1 B1 C1 D1                 C D                  A1 B1 C1 D1

Both directions are an all-to-all in the dtype in which the owner computes. If the weights have
replicas (HSDP), an owner gathers the parts of its own replica only, and scatters the result to all
replicas, so that they all get the same bits.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from itertools import groupby, product
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

ROUND_ELEMENTS = 2**25
"""Maximum number of elements per rank in a round, unless one matrix has more."""


class Part(NamedTuple):
    """The rectangle of a matrix that a rank holds. Parts sort by columns first, then by rows."""

    left: int
    right: int
    top: int
    bottom: int

    @property
    def shape(self) -> tuple[int, int]:
        """Returns (rows, columns)."""
        return self.bottom - self.top, self.right - self.left

    @property
    def elements(self) -> int:
        """Returns the number of elements."""
        return (self.bottom - self.top) * (self.right - self.left)

    def of(self, matrix: Tensor) -> Tensor:
        """Returns a view of this part of a matrix (rows, columns)."""
        return matrix[self.top : self.bottom, self.left : self.right]


class Message(NamedTuple):
    """Data that an all-to-all delivers. work: the running collective; None if there is none."""

    data: Tensor
    work: Any

    def wait(self) -> Tensor:
        """Returns the data. On a GPU, the current stream waits for it, and the host does not."""
        if self.work is not None:
            self.work.wait()
        return self.data


class Ranks(NamedTuple):
    """The ranks that hold the parts of a matrix.

    me: index of this rank.
    replicas: for each rank, the number of the replica of the weights that it belongs to.
    """

    me: int
    replicas: list[int]


class Round:
    """Matrices of one shape that are gathered, updated and scattered together.

    Attributes:
        parameters: the matrices, ordered by owner, the same on all ranks.
        shape: their (rows, columns).
        sent: slice of the matrices whose owner gathers this rank's part.
        owned: slice of the matrices that this rank owns.
    """

    def __init__(self, parameters: list[Tensor], owners: list[int]) -> None:
        self.parameters = parameters
        self.shape = parameters[0].shape
        me, replicas = ranks_of(parameters[0])
        parts = [parts_of(parameter) for parameter in parameters]
        # Replicas are the outermost dimension of the mesh, so both are contiguous.
        self.sent = _slice([replicas[owner] == replicas[me] for owner in owners])
        self.owned = _slice([owner == me for owner in owners])
        self._held = [part[me] for part in parts]
        owned = parts[self.owned]
        # The parts of the owned matrices, by source and by destination.
        self._gathered = [
            [part[rank] for part in owned] if replica == replicas[me] else []
            for rank, replica in enumerate(replicas)
        ]
        self._scattered = [[part[rank] for part in owned] for rank in range(len(replicas))]
        self._from_owners: list[list[Part]] = [[] for _ in replicas]
        self._to_owners: list[list[Part]] = [[] for _ in replicas]
        for index, (owner, part) in enumerate(zip(owners, self._held, strict=True)):
            self._from_owners[owner].append(part)
            if self.sent.start <= index < self.sent.stop:
                self._to_owners[owner].append(part)

    def gather(self, flat: Tensor) -> Message:
        """Starts to send the concatenated parts of the matrices in `sent` to their owners."""
        return _exchange(flat, self._to_owners, self._gathered)

    def whole(self, gathered: Tensor) -> Tensor:
        """Returns the owned matrices (count, rows, columns) from the message of `gather`."""
        pieces = iter(gathered.split([p.elements for source in self._gathered for p in source]))
        matrices: list[list[tuple[Part, Tensor]]] = [[] for _ in self.parameters[self.owned]]
        for source in self._gathered:
            for matrix, part in zip(matrices, source, strict=False):
                matrix.append((part, next(pieces).view(part.shape)))
        return torch.stack([_join(matrix) for matrix in matrices])

    def scatter(self, matrices: Tensor) -> Message:
        """Starts to send the parts of the owned matrices (count, rows, columns) to their ranks."""
        flat = torch.cat(
            [
                part.of(matrix).reshape(-1)
                for parts in self._scattered
                for part, matrix in zip(parts, matrices, strict=True)
            ]
            or [matrices.reshape(-1)]
        )
        return _exchange(flat, self._scattered, self._from_owners)

    def split(self, flat: Tensor) -> list[Tensor]:
        """Returns the parts of all matrices that this rank holds, as views of one flat tensor."""
        pieces = flat.split([part.elements for part in self._held])
        return [piece.view(part.shape) for piece, part in zip(pieces, self._held, strict=True)]


def rounds(parameters: list[Tensor], cost: Callable[[int, int], float]) -> list[Round]:
    """Returns the rounds that update all matrices, the most expensive ones first.

    The first messages then arrive while the longest computation runs.

    cost: function (rows, columns) -> the cost of updating a matrix.
    """
    if not parameters:
        return []
    _, replicas = ranks_of(parameters[0])
    # Sorting is stable, so the result depends only on the order of the parameters.
    ordered = sorted(parameters, key=lambda p: (-cost(*p.shape), *p.shape))
    owners = assign([cost(*parameter.shape) for parameter in ordered], len(replicas))
    found = []
    for (rows, columns), pairs in groupby(zip(ordered, owners, strict=True), lambda p: p[0].shape):
        per_owner = max(1, ROUND_ELEMENTS // (rows * columns * (max(replicas) + 1)))
        queues: list[list[Tensor]] = [[] for _ in replicas]
        for parameter, owner in pairs:
            queues[owner].append(parameter)
        while any(queues):
            taken = [(p, owner) for owner, queue in enumerate(queues) for p in queue[:per_owner]]
            queues = [queue[per_owner:] for queue in queues]
            found.append(Round([p for p, _ in taken], [owner for _, owner in taken]))
    return found


def assign(costs: Sequence[float], ranks: int) -> list[int]:
    """Returns the owner of each matrix: always the rank with the least work so far."""
    heap = [(0.0, rank) for rank in range(ranks)]
    owners = []
    for cost in costs:
        work, rank = heap[0]
        owners.append(rank)
        heapq.heapreplace(heap, (work + cost, rank))
    return owners


def combine(flat: Tensor, parameter: Tensor) -> None:
    """Adds up a tensor in place over all ranks that hold parts of a parameter."""
    if len(ranks_of(parameter).replicas) > 1:
        dist.all_reduce(flat)


def ranks_of(parameter: Tensor) -> Ranks:
    """Returns the ranks that hold parts of a parameter, in the order of its device mesh."""
    if not isinstance(parameter, DTensor) or parameter.device_mesh.size() == 1:
        return Ranks(0, [0])
    mesh, me = parameter.device_mesh, dist.get_rank()
    coordinates = list(product(*map(range, mesh.shape)))
    if mesh.size() != dist.get_world_size() or coordinates[me] != tuple(
        mesh.get_coordinate() or ()
    ):
        raise RuntimeError(f"{mesh} does not contain all ranks in their order.")
    replicated = [placement.is_replicate() for placement in parameter.placements]
    keys = [tuple(c for c, r in zip(at, replicated, strict=True) if r) for at in coordinates]
    number = {key: index for index, key in enumerate(dict.fromkeys(keys))}
    return Ranks(me, [number[key] for key in keys])


def parts_of(parameter: Tensor) -> list[Part]:
    """Returns the part of a matrix that each rank holds, in the order of its device mesh."""
    rows, columns = parameter.shape
    if not isinstance(parameter, DTensor):
        return [Part(0, columns, 0, rows)]
    shape, placements = parameter.device_mesh.shape, parameter.placements
    parts = []
    for at in product(*map(range, shape)):
        ranges = [(0, rows), (0, columns)]
        # FSDP2 comes first in the mesh, but shards what tensor parallelism has left.
        for size, index, placement in reversed(list(zip(shape, at, placements, strict=True))):
            if not placement.is_replicate():
                dim = placement.dim  # type: ignore[attr-defined]
                start, end = ranges[dim]
                ranges[dim] = _chunk(start, end, size, index)
        (top, bottom), (left, right) = ranges
        parts.append(Part(left, right, top, bottom))
    return parts


def _chunk(start: int, end: int, count: int, index: int) -> tuple[int, int]:
    """Returns the range of a chunk. Like torch.chunk, the last ones may be smaller or empty."""
    size = -(-(end - start) // count)
    return min(start + index * size, end), min(start + (index + 1) * size, end)


def _slice(chosen: list[bool]) -> slice:
    """Returns the slice of the chosen items, which are contiguous."""
    start = chosen.index(True) if any(chosen) else 0
    return slice(start, start + sum(chosen))


def _exchange(flat: Tensor, sent: list[list[Part]], received: list[list[Part]]) -> Message:
    """Starts an all-to-all, if there is more than one rank. sent, received: the parts per rank."""
    if len(sent) == 1:
        return Message(flat, None)
    from_each, to_each = ([sum(p.elements for p in parts) for parts in e] for e in (received, sent))
    data = flat.new_empty(sum(from_each))
    return Message(data, dist.all_to_all_single(data, flat, from_each, to_each, async_op=True))


def _join(parts: list[tuple[Part, Tensor]]) -> Tensor:
    """Returns the matrix that consists of these parts."""
    columns = [
        torch.cat([piece for _, piece in column])
        for _, column in groupby(sorted(parts, key=lambda p: p[0]), lambda p: p[0].left)
    ]
    return columns[0] if len(columns) == 1 else torch.cat(columns, dim=1)
