"""Reports when torch.compile compiles in the middle of a stage; all ranks."""

from __future__ import annotations

from pretrain.hooks import Hook, Order, TrainerView
from pretrain.parallel.compile import compiled_graphs

FREE_STEPS = 2
"""First steps of a stage, of a batch size of its ramp, and of a process, which may compile."""


class Recompiles(Hook):
    """Publishes an event for each step that compiled something after the first two of its stage.

    Such a step takes seconds to minutes, and the change of shape or value that caused it will
    likely occur again.
    """

    order = Order.TIME

    def on_start(self, trainer: TrainerView) -> None:
        """Notes the first step, because a resumed process compiles too."""
        self.first_step = trainer.step

    def before_step(self, trainer: TrainerView) -> None:
        """Excludes graphs that validation compiled between the steps."""
        self.graphs = compiled_graphs()

    def after_step(self, trainer: TrainerView) -> None:
        """Reports graphs that the step compiled."""
        made = compiled_graphs() - self.graphs
        level = trainer.plan.level(trainer.step - 1)  # the batches of a ramp differ in shape
        if made and trainer.step > max(level.first_step, self.first_step) + FREE_STEPS:
            trainer.publish({"kind": "event", "event": "recompile", "graphs": made})
