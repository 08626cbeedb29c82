"""Stand-ins for the few places of a run that need numbers, which a hollow GPU does not compute.

Importing the module puts them in place. `python -m tests.hollow.standins pretrain key=value ...`
runs a command of the project with them, also under `torchrun`.
"""

from __future__ import annotations

import runpy
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any, cast

import torch
import torch.distributed as dist
import torch.distributed._symmetric_memory as symmetric_memory

import pretrain.hooks.validation
from eval.inloop.evaluator import Score, evaluate
from pretrain.health.bad_steps import BadSteps
from pretrain.trainer import Trainer


def evaluate_without_numbers(*arguments: Any, **keywords: Any) -> Score:
    """Runs the validation as it is, and returns a made-up score: its sums are not computed."""
    with suppress(ZeroDivisionError, OverflowError, ValueError):
        evaluate(*arguments, **keywords)
    return Score(loss=1.0, bits_per_byte=1.0, tokens=1)


def no_step_is_bad(*_arguments: Any) -> dict[str, str]:
    """Returns an empty description: the verdict that the host reads was never computed."""
    return {}


def with_peaks(make: Callable[..., None]) -> Callable[..., None]:
    """Returns the trainer's constructor with peaks of FLOP/s that are sums over ranks, not 0."""

    def make_trainer(self: Trainer, *arguments: Any, **keywords: Any) -> None:
        make(self, *arguments, **keywords)
        self.peak, self.fp8_peak = 989.4e12, 1978.9e12

    return make_trainer


class SymmetricWorkspace:
    """Memory that the GPUs of a node share, as one rank sees it."""

    def __init__(self, group_name: str) -> None:
        group = dist.distributed_c10d._resolve_process_group(cast(Any, group_name))
        self.rank, self.world_size = group.rank(), group.size()

    def barrier(self, *_arguments: Any, **_keywords: Any) -> None:
        """Returns at once: there are no other ranks."""

    def get_buffer(
        self, rank: int, sizes: list[int], dtype: torch.dtype, storage_offset: int = 0
    ) -> torch.Tensor:
        """Returns a buffer like the one that `rank` would share."""
        return torch.empty(sizes, dtype=dtype, device="cuda")


def shared_workspace(group_name: str, min_size: int) -> SymmetricWorkspace:
    """Returns the stand-in for the memory that the ranks of a group share."""
    return SymmetricWorkspace(group_name)


def install() -> None:
    """Puts the stand-ins in place."""
    pretrain.hooks.validation.evaluate = evaluate_without_numbers
    BadSteps.describe = no_step_is_bad  # type: ignore[assignment,method-assign]
    Trainer.__init__ = with_peaks(Trainer.__init__)  # type: ignore[method-assign]
    setattr(symmetric_memory, "get_symm_mem_workspace", shared_workspace)  # noqa: B010  other type


install()

if __name__ == "__main__":
    sys.argv = sys.argv[1:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
