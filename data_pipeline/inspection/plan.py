"""The plan of a recipe for a corpus: stages, and the tokens and epochs of each source."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from conf.errors import InputError
from data_pipeline.sampling.order import SampleOrder
from data_pipeline.sampling.recipe import plan_from_mapping
from data_pipeline.sampling.stage import Stage
from data_pipeline.sampling.stage_sources import SourceTokens

GOOD_EPOCHS = 4.0
"""Number of epochs up to which repeated text is nearly as useful as new text.

See Muennighoff et al., 2023, arXiv 2305.16264."""


@dataclass(frozen=True)
class PlannedStage:
    """A stage of the plan.

    `shares` holds the fraction of its tokens that each source provides, and `fim` the options of
    fill in the middle in words, for the sources that have it.
    """

    name: str
    seq_len: int
    tokens: int
    samples: int
    shares: dict[str, float]
    fim: dict[str, str]


@dataclass(frozen=True)
class RecipePlan:
    """The stages of a recipe for a corpus.

    `order` is None if the recipe does not fit the corpus; `refused` then holds the reason.
    """

    name: str
    stages: list[PlannedStage]
    source_tokens: dict[str, int]
    order: SampleOrder | None
    refused: str
    max_epochs: float

    def taken(self) -> dict[str, float]:
        """Returns the number of tokens that the plan takes from each source."""
        return {
            source: sum(stage.tokens * stage.shares.get(source, 0.0) for stage in self.stages)
            for source in self.source_tokens
        }

    def epochs(self) -> dict[str, float]:
        """Returns how many times the plan reads each source that it uses."""
        if self.order is not None:
            return self.order.epochs()
        return {
            source: taken / tokens if (tokens := self.source_tokens[source]) else math.inf
            for source, taken in self.taken().items()
            if taken
        }

    def level(self, epochs: float) -> str:
        """Returns `bad` above max_epochs, else `warn` above GOOD_EPOCHS, else an empty string."""
        if epochs > self.max_epochs:
            return "bad"
        return "warn" if epochs > GOOD_EPOCHS else ""


def plan_recipe(
    recipe: Mapping[str, Any], source_tokens: SourceTokens, seed: int, max_epochs: float
) -> RecipePlan:
    """Returns the plan that a new run of `pretrain` would make from a recipe.

    A plan that exceeds max_epochs is returned nevertheless, because the page warns of it. Raises
    InputError if the recipe is inconsistent or names an unknown source.
    """
    plan = plan_from_mapping(recipe, source_tokens)
    stages = [_planned(stage.name, stage) for stage in plan.stages]
    order, refused = None, ""
    try:
        order = SampleOrder(plan.source_tokens, plan.stages, seed)
    except InputError as error:
        refused = str(error)
    newest = plan.stages[-1].source_tokens or plan.source_tokens
    return RecipePlan(plan.name, stages, dict(newest), order, refused, max_epochs)


def _planned(name: str, stage: Stage) -> PlannedStage:
    total = sum(stage.weights.values())
    shares = {source: weight / total for source, weight in stage.weights.items()}
    tokens = stage.samples * stage.seq_len
    fim = {source: options.describe() for source, options in stage.fim.items()}
    return PlannedStage(name, stage.seq_len, tokens, stage.samples, shares, fim)


def plan_of_run(run: Path, config: Mapping[str, Any]) -> RecipePlan:
    """Returns the plan of a run from its `order.json`."""
    order = SampleOrder.from_json((run / "order.json").read_text())
    recipe = config["recipe"]
    names = list(recipe["stages"])
    stages = [
        _planned(names[number] if number < len(names) else f"stage {number + 1}", stage)
        for number, stage in enumerate(order.stages)
    ]
    limit = config["data"].get("max_epochs", GOOD_EPOCHS)
    return RecipePlan(
        str(recipe.get("name", run.name)),
        stages,
        dict(order.tokens_of(-1)),
        order,
        "",
        math.inf if limit is None else float(limit),
    )


def read_env(run: Path) -> dict[str, Any]:
    """Returns the content of a run's `env.json`, or {} if there is no such file."""
    path = run / "env.json"
    return json.loads(path.read_text()) if path.is_file() else {}
