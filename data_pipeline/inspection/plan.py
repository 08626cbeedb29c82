"""What a recipe takes of a corpus: tokens and epochs of each source, stage by stage."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from conf.errors import InputError
from data_pipeline.sampling.order import OrderStage, SampleOrder
from data_pipeline.sampling.recipe import plan_of

GOOD_EPOCHS = 4.0
"""Repeating text up to so often costs little (Muennighoff et al., 2023, arXiv 2305.16264)."""


@dataclass(frozen=True)
class PlannedStage:
    """shares: of each source, summing to 1; tokens: as many as whole steps take."""

    name: str
    seq_len: int
    tokens: int
    samples: int
    shares: dict[str, float]


@dataclass(frozen=True)
class Plan:
    """The stages of a recipe on a corpus; order: None where `refused` says why there is none."""

    name: str
    stages: list[PlannedStage]
    source_tokens: dict[str, int]
    order: SampleOrder | None
    refused: str
    max_epochs: float

    def taken(self) -> dict[str, float]:
        """Tokens that the plan takes of each source."""
        return {
            source: sum(stage.tokens * stage.shares.get(source, 0.0) for stage in self.stages)
            for source in self.source_tokens
        }

    def epochs(self) -> dict[str, float]:
        """How often the plan reads each source."""
        if self.order is not None:
            return self.order.epochs()
        return {
            source: taken / tokens if (tokens := self.source_tokens[source]) else math.inf
            for source, taken in self.taken().items()
            if taken
        }

    def level(self, epochs: float) -> str:
        """'' for a good number of epochs, `warn` above GOOD_EPOCHS, `bad` above max_epochs."""
        if epochs > self.max_epochs:
            return "bad"
        return "warn" if epochs > GOOD_EPOCHS else ""


def plan_recipe(
    recipe: Mapping[str, Any], source_tokens: Mapping[str, int], seed: int, max_epochs: float
) -> Plan:
    """The plan of a recipe as `pretrain` would make it, but for limits: those are for the page to
    show. Raises InputError where the recipe does not fit together or names another source."""
    plan = plan_of(recipe, source_tokens)
    stages = [_planned(stage.name, stage.order_stage()) for stage in plan.stages]
    order, refused = None, ""
    try:
        order = SampleOrder(source_tokens, [s.order_stage() for s in plan.stages], seed)
    except InputError as error:
        refused = str(error)
    return Plan(plan.name, stages, dict(source_tokens), order, refused, max_epochs)


def _planned(name: str, stage: OrderStage) -> PlannedStage:
    total = sum(stage.weights.values())
    shares = {source: weight / total for source, weight in stage.weights.items()}
    tokens = stage.samples * stage.seq_len
    return PlannedStage(name, stage.seq_len, tokens, stage.samples, shares)


def plan_of_run(run: Path, config: Mapping[str, Any]) -> Plan:
    """The plan that a run has written down in `order.json`."""
    order = SampleOrder.from_json((run / "order.json").read_text())
    recipe = config["recipe"]
    names = list(recipe["stages"])
    stages = [
        _planned(names[number] if number < len(names) else f"stage {number + 1}", stage)
        for number, stage in enumerate(order.stages)
    ]
    limit = config["data"].get("max_epochs", GOOD_EPOCHS)
    return Plan(
        str(recipe.get("name", run.name)),
        stages,
        order.source_tokens,
        order,
        "",
        math.inf if limit is None else float(limit),
    )


def read_env(run: Path) -> dict[str, Any]:
    """`env.json` of a run; empty where it has none."""
    path = run / "env.json"
    return json.loads(path.read_text()) if path.is_file() else {}
