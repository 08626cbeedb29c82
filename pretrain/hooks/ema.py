"""Keeps an exponential moving average of the weights, on all ranks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from model.network import Decoder
from pretrain.averages.config import EmaConfig
from pretrain.averages.running import build
from pretrain.hooks import Hook, Order, TrainerView
from pretrain.parallel import reshard_parameters


class Ema(Hook):
    """Adds the weights to the average after every `ema.every_steps` steps, on all ranks.

    The weights after a skipped step do not enter.

    Attributes:
        average: The average.
        has_entries: Whether weights were added, so that the average can be validated.
    """

    order = Order.EVALUATE

    def __init__(self, config: EmaConfig, model: Decoder, device: torch.device) -> None:
        assert config.decay is not None
        self.config, self.model = config, model
        named = model.named_parameters()
        self.average = build(named, config.decay, config.device, device)
        self.has_entries = False

    def state_dict(self) -> dict[str, Any]:
        """Returns the settings of the average, for the card of an export."""
        return {"decay": self.config.decay, "every_steps": self.config.every_steps}

    def tensors(self) -> dict[str, Any]:
        """Returns the average and the number of its entries."""
        self.average.wait()
        return {"average": self.average.tensors, "entries": self.average.entries}

    def reset_tensors(self) -> None:
        """Starts a new average, for a checkpoint of a run that kept none."""
        self.average.reset()
        self.has_entries = False

    def on_start(self, trainer: TrainerView) -> None:
        """Finds out whether the average that a run continues with has entries."""
        self.has_entries = self.average.entries.item() > 0

    def before_optimizer_step(self, trainer: TrainerView) -> None:
        """Lets no update change weights that are still being copied to the host."""
        self.average.before_update()

    def after_step(self, trainer: TrainerView) -> None:
        """Adds the weights to the average when due."""
        if trainer.step % self.config.every_steps:
            return
        skipped = trainer.optimizer.found_inf  # type: ignore[attr-defined]
        if skipped is not None:  # otherwise a rewind has just replaced the weights
            self.average.add(skipped)
            self.has_entries = True

    @contextmanager
    def in_model(self) -> Iterator[None]:
        """Runs a block of code with the average in place of the weights. All ranks must enter."""
        reshard_parameters(self.model)
        with self.average.in_model():
            try:
                yield
            finally:
                reshard_parameters(self.model)
