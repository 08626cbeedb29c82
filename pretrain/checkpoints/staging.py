"""Plans this rank's part of a checkpoint, and copies it to memory shared with the writer.

Only tensors and optimizer states are staged. The metadata of the checkpoint, which rank 0 writes
into the manifest, comes from `Trainer.checkpoint_metadata` and from `Hook.state_dict`.
"""

from __future__ import annotations

import io
import mmap
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint import DefaultSavePlanner, FileSystemWriter
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import SavePlan, WriteItem, WriteItemType
from torch.distributed.checkpoint.state_dict import get_state_dict

ALIGNMENT = 64
NO_OTHERS: Mapping[str, Any] = {}


@dataclass(frozen=True)
class Slot:
    """The position of a tensor in the shared memory."""

    offset: int
    dtype: torch.dtype
    shape: torch.Size

    def view(self, memory: mmap.mmap) -> Tensor:
        """Returns the tensor at this position of the memory, without a copy."""
        count = self.shape.numel()
        if count == 0:
            return torch.empty(self.shape, dtype=self.dtype)
        flat = torch.frombuffer(memory, dtype=self.dtype, count=count, offset=self.offset)
        return flat.view(self.shape)


@dataclass(frozen=True)
class Staged:
    """A rank's part of a checkpoint: a slot or a pickle per item, in the order of the plan."""

    plan: SavePlan
    contents: list[bytes | Slot]
    bytes: int

    def values(self, memory: mmap.mmap) -> list[io.BytesIO | Tensor]:
        """Returns the value of each item, in the form that a storage writer takes."""
        return [
            content.view(memory) if isinstance(content, Slot) else io.BytesIO(content)
            for content in self.contents
        ]


class Planner:
    """Assigns each value of a checkpoint, even a replicated one, to a single rank.

    All ranks take part in the first plan. It is reused as long as the shapes do not change, which
    in practice means for the life of the process.
    """

    def __init__(self) -> None:
        self._plan: SavePlan | None = None
        self._shape: list[tuple[str, torch.Size | None]] = []
        self.metadata: Metadata | None = None

    def plan(self, state: dict[str, Any]) -> tuple[DefaultSavePlanner, SavePlan]:
        """Returns a planner that can resolve the items of this state, and this rank's save plan."""
        planner = DefaultSavePlanner()
        rank = dist.get_rank()
        planner.set_up_planner(state, is_coordinator=rank == 0)
        flat = planner.state_dict
        shape = [(key, getattr(value, "shape", None)) for key, value in flat.items()]
        if self._plan is None or shape != self._shape:
            local = planner.create_local_plan()
            plans: list[Any] | None = [None] * dist.get_world_size() if rank == 0 else None
            dist.gather_object(local, plans)
            answers: list[Any] = [None] * dist.get_world_size()
            if plans is not None:
                answers, self.metadata = planner.create_global_plan(plans)
                # This only assigns file names to the plans; the path is not used.
                answers = FileSystemWriter(".").prepare_global_plan(answers)
            mine: list[Any] = [None]
            dist.scatter_object_list(mine, answers if rank == 0 else None)
            self._plan, self._shape = planner.finish_plan(mine[0]), shape
        return planner, self._plan


def state_of(
    model: nn.Module, optimizer: torch.optim.Optimizer, others: Mapping[str, Any] = NO_OTHERS
) -> dict[str, Any]:
    """Returns the values that a checkpoint stores, by names that are the same in every layout.

    others: further tensors to store, such as those of hooks.
    """
    weights, states = get_state_dict(model, optimizer)
    return {"model": weights, "optimizer": states, **others}


def allocate(planner: DefaultSavePlanner, plan: SavePlan) -> tuple[Staged, list[Tensor | None]]:
    """Assigns a slot to each tensor of a plan, and returns the slots and the tensors to copy."""
    contents: list[bytes | Slot] = []
    sources: list[Tensor | None] = []
    end = 0
    for item in plan.items:
        data = resolve(planner, item)
        if isinstance(data, Tensor):
            contents.append(Slot(end, data.dtype, data.shape))
            end += -(-data.numel() * data.element_size() // ALIGNMENT) * ALIGNMENT
            sources.append(data)
        else:
            contents.append(data.getvalue())
            sources.append(None)
    return Staged(plan, contents, end), sources


def resolve(planner: DefaultSavePlanner, item: WriteItem) -> Tensor | io.BytesIO:
    """Returns this rank's value of an item."""
    data = planner.resolve_data(item)
    return data if item.type == WriteItemType.BYTE_IO else cast(Tensor, data).detach()


class Copier:
    """Copies the tensors of a save to memory.

    On a GPU, the copies are queued on a stream of their own. They begin when the step is done, and
    take place while the device computes the next step, up to its update of the weights.
    """

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._copied: torch.cuda.Event | None = None

    def copy(
        self, staged: Staged, sources: list[Tensor | None], memory: mmap.mmap
    ) -> torch.cuda.Event | None:
        """Copies the tensors to their slots.

        Returns the event for which the host must wait before it reads the memory, or None if the
        tensors are copied already. `sources` must be kept until then.
        """
        if self._stream is None:
            _copy(staged, sources, memory)
            return None
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            _copy(staged, sources, memory)
            self._copied = torch.cuda.Event(blocking=True)
            self._copied.record()
        return self._copied

    def delay_update(self) -> None:
        """Makes the device finish copying before it runs what is queued next; no host waits."""
        copied, self._copied = self._copied, None
        if copied is not None:
            torch.cuda.current_stream().wait_event(copied)


def _copy(staged: Staged, sources: list[Tensor | None], memory: mmap.mmap) -> None:
    for content, source in zip(staged.contents, sources, strict=True):
        if isinstance(content, Slot) and source is not None:
            content.view(memory).copy_(source, non_blocking=True)
