"""Matrix products in the precision of each stage; all ranks."""

from __future__ import annotations

from pretrain.config import PretrainConfig
from pretrain.hooks import Hook, Order, TrainerView
from pretrain.parallel.fp8 import apply_fp8


class PrecisionByStage(Hook):
    """Turns the linears of all blocks into those of the stage's precision, between steps."""

    order = Order.SETTINGS

    def __init__(self, config: PretrainConfig) -> None:
        self.config = config
        self.now = config.precision

    def on_start(self, trainer: TrainerView) -> None:
        """Takes that of the stage in which this process begins."""
        self.before_step(trainer)

    def before_step(self, trainer: TrainerView) -> None:
        """Changes it with the stage."""
        wanted = self.config.precision_of(trainer.plan.at(trainer.step))
        if wanted != self.now:
            apply_fp8(trainer.model, wanted, trainer.processes.device)
            self.now = wanted
            trainer.publish({"kind": "event", "event": "precision", "precision": wanted})
