"""Sets the attention backend of each stage, on all ranks."""

from __future__ import annotations

from dataclasses import asdict

from model.attention.backends import select_flash_kernel
from pretrain.attention_choice import Timing, attention_key
from pretrain.hooks import Hook, Order, TrainerView


class AttentionByStage(Hook):
    """Switches between the backends that were chosen at the start of the run.

    choice: the backend by `attention_key`.
    """

    order = Order.SETTINGS

    def __init__(self, choice: dict[str, Timing]) -> None:
        self.choice = choice

    def on_start(self, trainer: TrainerView) -> None:
        """Sets the first backend, and publishes all backends with their times."""
        self.before_step(trainer)
        for key, timing in self.choice.items():
            length, _, joined = key.partition(" ")
            record = {"kind": "event", "event": "attention", "seq_len": int(length)}
            record |= {"documents": joined or "separate"}
            trainer.publish(record | asdict(timing))

    def before_step(self, trainer: TrainerView) -> None:
        """Sets the backend of the stage."""
        backend = self.choice[attention_key(trainer.plan.at(trainer.step))].backend
        trainer.model.attention = backend
        select_flash_kernel(backend)
