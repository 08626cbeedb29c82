"""Python's garbage collector at steps of our choice; all ranks.

A collection takes long with all the objects of a large program, and comes at another moment on
each rank: every rank would wait for each of them. So objects that stay are set aside, automatic
collection is off, and all ranks collect after the same steps.
"""

from __future__ import annotations

import gc

from pretrain.hooks import Hook, TrainerView


class Garbage(Hook):
    """every_steps: between collections; 0 leaves Python's own way."""

    def __init__(self, every_steps: int) -> None:
        self.every_steps = every_steps

    def on_start(self, trainer: TrainerView) -> None:
        """Collects what the setup left, and freezes what is there."""
        if self.every_steps:
            gc.collect()
            gc.freeze()
            gc.disable()

    def after_step(self, trainer: TrainerView) -> None:
        """Collects young objects: those that reach old age here are few."""
        if self.every_steps and trainer.step % self.every_steps == 0:
            gc.collect(1)

    def on_end(self, trainer: TrainerView) -> None:
        """Back to Python's own way."""
        if self.every_steps:
            gc.enable()
            gc.unfreeze()
