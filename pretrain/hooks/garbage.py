"""Runs Python's garbage collector after the same steps on all ranks.

A collection takes long in a large program, and automatic collections run at different times on each
rank, so that every rank would wait for each of them. Long-lived objects are therefore frozen, and
automatic collection is off.
"""

from __future__ import annotations

import gc

from pretrain.hooks import Hook, TrainerView


class Garbage(Hook):
    """Collects every `every_steps`; 0 leaves Python's automatic collection on."""

    def __init__(self, every_steps: int) -> None:
        self.every_steps = every_steps

    def on_start(self, trainer: TrainerView) -> None:
        """Collects the garbage of the setup, and freezes all other objects."""
        if self.every_steps:
            gc.collect()
            gc.freeze()
            gc.disable()

    def after_step(self, trainer: TrainerView) -> None:
        """Collects young objects; few objects reach generation 2."""
        if self.every_steps and trainer.step % self.every_steps == 0:
            gc.collect(1)

    def on_end(self, trainer: TrainerView) -> None:
        """Turns automatic collection on again."""
        if self.every_steps:
            gc.enable()
            gc.unfreeze()
