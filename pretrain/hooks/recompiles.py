"""Reports when torch.compile recompiles in the middle of a stage, on all ranks."""

from __future__ import annotations

from pretrain.hooks import Hook, Order, TrainerView
from pretrain.parallel.compile import compiled_graphs

FREE_STEPS = 2
"""Number of steps that may compile after the start of a process, a stage or a new batch size."""


class Recompiles(Hook):
    """Publishes an event for each step that compiled a graph although no new graph was expected.

    New graphs are expected only in the first FREE_STEPS steps of a process, of a stage and of each
    batch size of a ramp. Any other step that compiles takes seconds to minutes, and the change of
    shape or value that caused it is likely to occur again.
    """

    order = Order.TIME

    def on_start(self, trainer: TrainerView) -> None:
        """Notes the first step of this process, because a resumed process compiles again."""
        self.first_step = trainer.step

    def before_step(self, trainer: TrainerView) -> None:
        """Counts the graphs so far, to exclude those that validation compiled between steps."""
        self.graphs = compiled_graphs()

    def after_step(self, trainer: TrainerView) -> None:
        """Reports graphs that the step compiled."""
        made = compiled_graphs() - self.graphs
        level = trainer.plan.level(trainer.step - 1)  # a batch-size ramp changes shapes
        if made and trainer.step > max(level.first_step, self.first_step) + FREE_STEPS:
            trainer.publish({"kind": "event", "event": "recompile", "graphs": made})
