"""The order in which a tuning run reads its rows.

For the same rows and batch size, the order depends only on the seed and the epoch. A run that is
resumed, or distributed over another number of processes, therefore sees the same batches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch.utils.data import Sampler

CHUNK_BATCHES = 50
"""Size, in batches, of the random chunks of the data within which rows are sorted by length."""


def shuffled_indices(
    lengths: Sequence[int], batch_size: int, seed: int, epoch: int, *, by_length: bool
) -> list[int]:
    """Returns all indices of `lengths` in a random order; every `batch_size` in a row form a batch.

    by_length: whether to put rows of similar length into the same batch, to reduce padding.
    """
    generator = torch.Generator().manual_seed(seed + epoch)
    shuffled = torch.randperm(len(lengths), generator=generator).tolist()
    if not by_length:
        return shuffled
    full: list[list[int]] = []
    rest: list[int] = []
    chunk_size = CHUNK_BATCHES * batch_size
    for start in range(0, len(shuffled), chunk_size):
        chunk = sorted(shuffled[start : start + chunk_size], key=lambda index: -lengths[index])
        batches = [chunk[i : i + batch_size] for i in range(0, len(chunk), batch_size)]
        if len(batches[-1]) < batch_size:
            rest = batches.pop()
        full += batches
    mixed = [full[i] for i in torch.randperm(len(full), generator=generator).tolist()]
    return [index for batch in [*mixed, rest] for index in batch]


class BatchOrder(Sampler[int]):
    """A sampler that shuffles rows by the seed and the epoch number.

    `epoch()` is called at the start of each iteration and returns the epoch number.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        batch_size: int,
        seed: int,
        epoch: Callable[[], int],
        *,
        by_length: bool,
    ) -> None:
        self.lengths, self.batch_size, self.seed = lengths, batch_size, seed
        self.epoch, self.by_length = epoch, by_length

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        yield from shuffled_indices(
            self.lengths, self.batch_size, self.seed, self.epoch(), by_length=self.by_length
        )
