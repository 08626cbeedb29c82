"""Sets the precision of matrix products for each stage, on all ranks."""

from __future__ import annotations

from pretrain.config import PretrainConfig
from pretrain.hooks import Hook, Order, TrainerView
from pretrain.parallel.fp8 import apply_fp8


class PrecisionByStage(Hook):
    """Converts the linear layers of all blocks when the precision changes between two stages."""

    order = Order.SETTINGS

    def __init__(self, config: PretrainConfig) -> None:
        self.config = config
        self.now = config.precision

    def on_start(self, trainer: TrainerView) -> None:
        """Sets the precision of the stage in which this process starts."""
        self.before_step(trainer)

    def before_step(self, trainer: TrainerView) -> None:
        """Sets the precision of the next step's stage."""
        wanted = self.config.precision_of(trainer.plan.at(trainer.step))
        if wanted != self.now:
            apply_fp8(trainer.model, wanted, trainer.processes.device)
            self.now = wanted
            trainer.publish({"kind": "event", "event": "precision", "precision": wanted})
