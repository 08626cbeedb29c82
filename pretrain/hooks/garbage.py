"""Runs Python's garbage collector after the same steps on all ranks.

A collection takes long in a large program. Automatic collections run at different times on each
rank, and during each of them all other ranks would wait. Automatic collection is therefore turned
off, and long-lived objects are frozen, which excludes them from collections.
"""

from __future__ import annotations

import gc

from pretrain.hooks import Hook, TrainerView


class Garbage(Hook):
    """Collects garbage every `every_steps` steps; 0 keeps Python's automatic collection."""

    def __init__(self, every_steps: int) -> None:
        self.every_steps = every_steps

    def on_start(self, trainer: TrainerView) -> None:
        """Collects the garbage of the setup, and freezes all other objects."""
        if self.every_steps:
            gc.collect()
            gc.freeze()
            gc.disable()

    def after_step(self, trainer: TrainerView) -> None:
        """Collects generations 0 and 1 at the interval; few objects reach generation 2."""
        if self.every_steps and trainer.step % self.every_steps == 0:
            gc.collect(1)

    def on_end(self, trainer: TrainerView) -> None:
        """Turns automatic collection on again."""
        if self.every_steps:
            gc.enable()
            gc.unfreeze()
