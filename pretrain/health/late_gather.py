"""An asynchronous all-gather whose result is returned one call later, so that no rank waits."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from pretrain.processes import Processes


class LateGather:
    """Gathers `width` numbers per rank on the CPU.

    All ranks must create it at the same point, because this creates a process group.
    """

    def __init__(self, processes: Processes, width: int = 1) -> None:
        self.world_size = processes.world_size
        self.width = width
        self.group = dist.new_group(backend="gloo") if self.world_size > 1 else None
        self._under_way: tuple[dist.Work, list[Tensor]] | None = None

    def exchange(self, mine: list[float]) -> list[list[float]]:
        """Submits this rank's numbers, and returns those that all ranks submitted one call earlier.

        The first call returns an empty list. All ranks must call it equally often, and get the same
        result. A single process gets its own numbers back at once.
        """
        if self.group is None:
            return [mine]
        before = self.collect()
        numbers = torch.tensor(mine, dtype=torch.float64)
        parts = [torch.empty(self.width, dtype=torch.float64) for _ in range(self.world_size)]
        work = dist.all_gather(parts, numbers, group=self.group, async_op=True)
        self._under_way = (work, parts)
        return before

    def collect(self) -> list[list[float]]:
        """Waits for the pending gather, and returns its numbers by rank; empty if there is none."""
        if self._under_way is None:
            return []
        work, parts = self._under_way
        self._under_way = None
        work.wait()
        return [part.tolist() for part in parts]
