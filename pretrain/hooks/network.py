"""Gives the decoder the network of each stage, such as its RoPE base; all ranks."""

from __future__ import annotations

from pretrain.hooks import Hook, Order, TrainerView
from pretrain.stage_network import network_after, network_of


class NetworkByStage(Hook):
    """Comes before all hooks that run the model. Between steps the decoder keeps the network of the
    last step, which is the one to validate and to save."""

    order = Order.SETTINGS

    def on_start(self, trainer: TrainerView) -> None:
        """Takes the network of the steps that are done."""
        model, plan = trainer.config.model, trainer.plan
        trainer.model.config = network_after(model, plan, trainer.step)

    def before_step(self, trainer: TrainerView) -> None:
        """Takes the network of the stage of the coming step."""
        stage = trainer.plan.at(trainer.step)
        trainer.model.config = network_of(trainer.config.model, stage)
