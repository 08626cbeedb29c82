"""Configuration of `python -m data_pipeline inspect`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from conf.errors import InputError
from data_pipeline.inspection.plan import GOOD_EPOCHS


@dataclass
class InspectConfig:
    """Configuration of `inspect`.

    out: HTML file to write.
    overwrite: replaces `out` if it is a page that Headwater made.
    data: folder of shards to show.
    run: run folder, instead of `data`; the page shows the data and the recipe of that run.
    recipe: a recipe, as for `pretrain`. Without a recipe, the page has no plan.
    max_epochs: maximum number of epochs per source, like data.max_epochs of `pretrain`.
    seed: seed for the order of samples and for the choice of documents; null uses the seed of the
        run, or 0 without a run.
    documents: number of documents to show per source.
    sequences: number of training sequences to show per stage.
    pairs: number of pairs of near duplicates to show.
    """

    out: str = MISSING
    data: str | None = None
    run: str | None = None
    recipe: dict[str, Any] = field(default_factory=dict)
    max_epochs: float = GOOD_EPOCHS
    seed: int | None = None
    documents: int = 2
    sequences: int = 2
    pairs: int = 6
    overwrite: bool = False

    def __post_init__(self) -> None:
        if bool(self.data) == bool(self.run):
            raise InputError(
                "data and run: expected one of the two. Give data=<folder of shards> or "
                "run=<run folder>."
            )
        if self.run and self.recipe:
            raise InputError(
                f"run={self.run}: the run already has a recipe. Remove recipe, or give data "
                "instead of run."
            )
        for key in ("documents", "sequences", "pairs"):
            if getattr(self, key) < 0:
                raise InputError(f"{key}={getattr(self, key)}: expected 0 or more.")
