"""A few numbers of every rank, on the CPU, one step late: no rank waits for another in it."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from pretrain.processes import Processes


class LateGather:
    """Gathers `width` numbers over all ranks. The group is made by all ranks at once."""

    def __init__(self, processes: Processes, width: int = 1) -> None:
        self.world_size = processes.world_size
        self.width = width
        self.group = dist.new_group(backend="gloo") if self.world_size > 1 else None
        self._under_way: tuple[dist.Work, list[Tensor]] | None = None

    def exchange(self, mine: list[float]) -> list[list[float]]:
        """Hands in this rank's numbers, and returns by rank those of the call before (at the first
        call, none). All ranks call it equally often and get the same answer. A process that is
        alone gets its own at once."""
        if self.group is None:
            return [mine]
        before = self.collect()
        numbers = torch.tensor(mine, dtype=torch.float64)
        parts = [torch.empty(self.width, dtype=torch.float64) for _ in range(self.world_size)]
        work = dist.all_gather(parts, numbers, group=self.group, async_op=True)
        self._under_way = (work, parts)
        return before

    def collect(self) -> list[list[float]]:
        """What is under way, by rank; none where nothing is."""
        if self._under_way is None:
            return []
        work, parts = self._under_way
        self._under_way = None
        work.wait()
        return [part.tolist() for part in parts]
