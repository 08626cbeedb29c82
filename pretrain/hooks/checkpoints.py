"""Saves at an interval and after the last step; all ranks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pretrain import checkpoint
from pretrain.config import CheckpointConfig
from pretrain.hooks import Hook

if TYPE_CHECKING:
    from pretrain.trainer import Trainer


class Checkpoints(Hook):
    """Keeps the newest ones."""

    def __init__(self, config: CheckpointConfig) -> None:
        self.config = config

    def after_step(self, trainer: Trainer) -> None:
        """Saves when it is time, then prunes."""
        every = self.config.every_steps
        if trainer.step == trainer.plan.total_steps or (every and trainer.step % every == 0):
            trainer.flush()
            path = checkpoint.save(
                trainer.checkpoints, trainer.step, trainer.model, trainer.optimizer, trainer.about()
            )
            if trainer.processes.is_main:
                checkpoint.prune(trainer.checkpoints, self.config.keep_last)
            trainer.publish({"kind": "event", "event": "checkpoint", "path": path.name})
