"""The order in which a tuning run sees its rows: a function of the seed and the epoch, so that a
run that is continued, or spread over other processes, sees the same batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch.utils.data import Sampler

# Batches are made of rows of like length out of a random share of the data as large as this.
SHARE_BATCHES = 50


def order(
    lengths: Sequence[int], batch_size: int, seed: int, epoch: int, *, alike: bool
) -> list[int]:
    """All indices of `lengths` in a random order, so that each `batch_size` of them make a batch.

    alike: batches hold rows of like length, which wastes little on padding.
    """
    generator = torch.Generator().manual_seed(seed + epoch)
    shuffled = torch.randperm(len(lengths), generator=generator).tolist()
    if not alike:
        return shuffled
    whole: list[list[int]] = []
    rest: list[int] = []
    share = SHARE_BATCHES * batch_size
    for start in range(0, len(shuffled), share):
        part = sorted(shuffled[start : start + share], key=lambda index: -lengths[index])
        batches = [part[i : i + batch_size] for i in range(0, len(part), batch_size)]
        if len(batches[-1]) < batch_size:
            rest = batches.pop()
        whole += batches
    mixed = [whole[i] for i in torch.randperm(len(whole), generator=generator).tolist()]
    return [index for batch in [*mixed, rest] for index in batch]


class Order(Sampler[int]):
    """The order of the epoch that `epoch()` says when an iteration begins."""

    def __init__(
        self,
        lengths: Sequence[int],
        batch_size: int,
        seed: int,
        epoch: Callable[[], int],
        *,
        alike: bool,
    ) -> None:
        self.lengths, self.batch_size, self.seed = lengths, batch_size, seed
        self.epoch, self.alike = epoch, alike

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        epoch = self.epoch()
        yield from order(self.lengths, self.batch_size, self.seed, epoch, alike=self.alike)
