"""Runs chosen steps twice from the same state and compares the results bit by bit.

The results differ if a machine sometimes computes wrongly. On a GPU, this needs
`deterministic=true`, since other kernels add in no fixed order.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from conf.errors import EXIT_CORRUPT, RunAborted
from pretrain.health.fingerprint import bits
from pretrain.hooks import Hook, Order, PendingStep, TrainerView


class Replay(Hook):
    """Replays the given steps, counted from 1, on all ranks.

    These steps need memory for a second copy of the weights and optimizer states.
    """

    order = Order.VERIFY

    def __init__(self, steps: list[int]) -> None:
        self.steps = set(steps)
        self.first: list[Tensor] = []

    def before_step(self, trainer: TrainerView) -> None:
        """Runs the step once, keeps its numbers, and restores the state from before it."""
        if trainer.step + 1 not in self.steps:
            return
        trainer.flush()
        before = [tensor.clone() for tensor in state_of(trainer)]
        had_state = bool(trainer.optimizer.state)
        self.first = self._numbers(trainer, trainer.train_step())
        if not had_state:
            trainer.optimizer.state.clear()
        with torch.no_grad():
            for tensor, value in zip(state_of(trainer), before, strict=True):
                tensor.copy_(value)

    def after_step(self, trainer: TrainerView) -> None:
        """Compares both runs of the step. Raises RunAborted on all ranks if a bit differs."""
        if not self.first:
            return
        assert trainer.pending is not None
        second = self._numbers(trainer, trainer.pending)
        equal = all(torch.equal(a, b) for a, b in zip(self.first, second, strict=True))
        self.first = []
        answers: list[Any] = [None] * trainer.processes.world_size
        dist.all_gather_object(answers, equal)
        wrong = [rank for rank, same in enumerate(answers) if not same]
        trainer.publish({"kind": "event", "event": "replay", "unequal_ranks": wrong})
        if wrong:
            raise RunAborted(
                f"step {trainer.step} gave different results when it was replayed, on rank "
                f"{', '.join(map(str, wrong))}, although its kernels are deterministic: a machine "
                "computes wrong results. Test that machine, or exclude it.",
                EXIT_CORRUPT,
            )

    def _numbers(self, trainer: TrainerView, pending: PendingStep) -> list[Tensor]:
        """Returns this rank's checksums of the state after a step and of the step's numbers."""
        sums = torch.stack([bits(tensor).cpu() for tensor in state_of(trainer)])
        return [sums, pending.numbers.bits()]


def state_of(trainer: TrainerView) -> list[Tensor]:
    """Returns this rank's shards of the weights and optimizer states, in a fixed order."""
    tensors: list[Tensor] = [*trainer.model.parameters()]
    for parameter in trainer.model.parameters():
        states = trainer.optimizer.state.get(parameter, {})
        tensors += [value for _, value in sorted(states.items()) if isinstance(value, Tensor)]
    return [t.to_local().detach() if isinstance(t, DTensor) else t.detach() for t in tensors]
