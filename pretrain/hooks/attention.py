"""Sets the attention backend of each stage, on all ranks."""

from __future__ import annotations

from dataclasses import asdict

from pretrain.attention_choice import Timing
from pretrain.hooks import Hook, Order, TrainerView


class AttentionByStage(Hook):
    """Switches between the backends that were chosen at the start of the run.

    choice: the backend for each sequence length.
    """

    order = Order.SETTINGS

    def __init__(self, choice: dict[int, Timing]) -> None:
        self.choice = choice

    def on_start(self, trainer: TrainerView) -> None:
        """Sets the first backend, and publishes all backends with their times."""
        self.before_step(trainer)
        for seq_len, timing in self.choice.items():
            record = {"kind": "event", "event": "attention", "seq_len": seq_len}
            trainer.publish(record | asdict(timing))

    def before_step(self, trainer: TrainerView) -> None:
        """Sets the backend for the sequence length of the stage."""
        trainer.model.attention = self.choice[trainer.plan.at(trainer.step).seq_len].backend
