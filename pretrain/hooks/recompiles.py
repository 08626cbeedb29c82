"""Says when torch.compile compiles in the middle of a stage; all ranks."""

from __future__ import annotations

from pretrain.hooks import Hook, Order, TrainerView
from pretrain.parallel.compile import compiled_graphs

FREE_STEPS = 2
"""Steps of a stage, of a size of its ramp, and of a process, in which compiling is expected."""


class Recompiles(Hook):
    """Publishes an event for each step after the second of a stage, or of a size of its ramp, that
    compiled something: it took seconds to minutes, and what changed its shape or value will most
    likely do it again."""

    order = Order.TIME

    def on_start(self, trainer: TrainerView) -> None:
        """Counts steps from here: a process that resumes compiles too."""
        self.first_step = trainer.step

    def before_step(self, trainer: TrainerView) -> None:
        """Forgets what was compiled between the steps, by validation."""
        self.graphs = compiled_graphs()

    def after_step(self, trainer: TrainerView) -> None:
        """Compares."""
        made = compiled_graphs() - self.graphs
        level = trainer.plan.level(trainer.step - 1)  # batches of a ramp may differ in shape
        if made and trainer.step > max(level.first_step, self.first_step) + FREE_STEPS:
            trainer.publish({"kind": "event", "event": "recompile", "graphs": made})
