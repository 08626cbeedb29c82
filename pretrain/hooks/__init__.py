"""What happens around a step: one file a feature. The loop calls, the hooks do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pretrain.trainer import Trainer


class Hook:
    """Called by the trainer in the order of its list; every method is optional.

    Methods run on every rank unless the hook was added on one rank only; those that use
    collectives must be on all.
    """

    def on_start(self, trainer: Trainer) -> None:
        """Before the first step of this process, with the state in place."""

    def before_step(self, trainer: Trainer) -> None:
        """Right before each step."""

    def after_step(self, trainer: Trainer) -> None:
        """After each step; `trainer.step` counts the steps done."""

    def on_record(self, record: Mapping[str, Any]) -> None:
        """A line of metrics: `kind` is train, validation, eval or event. Train lines come one step
        late, so that reading them never waits for the device."""

    def before_rewind(self, trainer: Trainer) -> None:
        """Right before an earlier state of weights and optimizer is loaded, after a step."""

    def on_end(self, trainer: Trainer) -> None:
        """After the last step of this process."""

    def on_leave(self, trainer: Trainer) -> None:
        """At the very end, after an error too: what runs beside the training ends in seconds."""
