"""Applies the network settings of each stage, such as its RoPE base, on all ranks."""

from __future__ import annotations

from pretrain.hooks import Hook, Order, TrainerView
from pretrain.stage_network import network_after, network_of


class NetworkByStage(Hook):
    """Sets the decoder's config before each step.

    Between steps, the decoder keeps the config of the last step, so that validation and checkpoints
    use it.
    """

    order = Order.SETTINGS

    def on_start(self, trainer: TrainerView) -> None:
        """Sets the network config of the last step done."""
        model, plan = trainer.config.model, trainer.plan
        trainer.model.config = network_after(model, plan, trainer.step)

    def before_step(self, trainer: TrainerView) -> None:
        """Sets the network config of the next step's stage."""
        stage = trainer.plan.at(trainer.step)
        trainer.model.config = network_of(trainer.config.model, stage)
