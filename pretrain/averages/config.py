"""Config of the average of the weights that a run keeps while it trains."""

from __future__ import annotations

from dataclasses import dataclass

from conf.errors import InputError, one_of


@dataclass
class EmaConfig:
    """Exponential moving average (EMA) of the weights, in float32 and sharded like them.

    decay: factor on the average at each of its updates; null for no average. The average covers
        about every_steps / (1 - decay) steps.
    every_steps: number of steps between updates of the average.
    device: memory that holds the average: auto for the device of the run, or cpu for that of the
        host.
    """

    decay: float | None = None
    every_steps: int = 10
    device: str = "auto"

    def __post_init__(self) -> None:
        one_of("ema.device", self.device, ("auto", "cpu"))
        if self.decay is not None and not 0 <= self.decay < 1:
            raise InputError(
                f"ema.decay={self.decay}: expected 0 or more and less than 1. Use a value such as "
                "0.999, or null for no average."
            )
        if self.every_steps < 1:
            raise InputError(f"ema.every_steps={self.every_steps}: expected 1 or more.")

    @property
    def on_device(self) -> bool:
        """Returns whether the average takes memory of the device."""
        return self.decay is not None and self.device == "auto"


def check_ema(config: EmaConfig, total_steps: int) -> None:
    """Raises InputError if a run would end before the first update of its average."""
    if config.decay is not None and config.every_steps > total_steps:
        raise InputError(
            f"ema.every_steps={config.every_steps}: the run has {total_steps} steps, so the "
            "average would never be updated. Lower ema.every_steps, or remove ema.decay."
        )
