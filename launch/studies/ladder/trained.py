"""Losses that the target of a ladder has reached, and their distance from the forecast."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from conf.errors import InputError
from launch.studies.fits.scaling_law import LEVEL, Interval
from launch.studies.results import is_finished, read_records

Sources = dict[str, tuple[float, float | None]]
"""Nats per token and bits per byte by source."""


@dataclass(frozen=True)
class Trained:
    """Results of the target, one per seed.

    Attributes:
        losses: Held-out losses.
        sources: Held-out losses by source.
    """

    losses: list[float]
    sources: list[Sources]

    @property
    def mean(self) -> float:
        """The mean over the seeds."""
        return fmean(self.losses)

    @property
    def spread(self) -> float | None:
        """The standard deviation between seeds, or None with one of them."""
        return stdev(self.losses) if len(self.losses) > 1 else None

    def of_source(self, source: str, unit: int) -> float | None:
        """Returns the mean of a source in nats per token (unit 0) or bits per byte (unit 1)."""
        values = [sources[source][unit] for sources in self.sources if source in sources]
        known = [value for value in values if value is not None]
        return fmean(known) if known else None

    def numbers(self, forecast: Interval) -> dict[str, Any]:
        """Returns the comparison as numbers."""
        return {
            "losses": self.losses,
            "mean": self.mean,
            "standard_deviation": self.spread,
            "relative_error": forecast.value / self.mean - 1,
            "covered": sum(forecast.covers(loss) for loss in self.losses),
        }

    def sentence(self, forecast: Interval) -> str:
        """Returns the comparison as a sentence."""
        seeds = ", ".join(f"{loss:.4f}" for loss in self.losses)
        inside = sum(forecast.covers(loss) for loss in self.losses)
        noise = "" if self.spread is None else f", standard deviation {self.spread:.4f}"
        return (
            f"The target was trained: {seeds} nats per token (mean {self.mean:.4f}{noise}). The "
            f"forecast of {forecast.value:.4f} is off by {forecast.value / self.mean - 1:+.2%}, "
            f"and {inside} of {len(self.losses)} results are inside its {LEVEL:.0%} interval."
        )


def trained_elsewhere(folder: str) -> tuple[float, Sources]:
    """Returns the last held-out losses of a run folder.

    Raises:
        InputError: the run has not finished.
    """
    path = Path(folder)
    validations = [record for record in read_records(path) if record["kind"] == "validation"]
    if not validations or not is_finished(path):
        raise InputError(
            f"study.target_runs={folder}: the folder holds no run that has finished. Give the "
            "run_dir of the target after its last step."
        )
    last = validations[-1]
    sources = {
        name: (score["loss"], score.get("bits_per_byte")) for name, score in last["sources"].items()
    }
    return last["loss"], sources
