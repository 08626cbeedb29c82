"""What a recipe takes of a corpus: tokens and epochs of each source, stage by stage."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from conf.errors import InputError, did_you_mean
from data_pipeline.order import OrderStage, SampleOrder

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
    try:
        batch = int(recipe["global_batch_tokens"])
        found = {name: dict(stage) for name, stage in recipe["stages"].items()}
        lengths = {name: int(stage["seq_len"]) for name, stage in found.items()}
        budgets = {name: int(stage["tokens"]) for name, stage in found.items()}
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"recipe lacks {error}: expected global_batch_tokens, and stages with seq_len and "
            "tokens, as in conf/recipe."
        ) from None
    stages: list[PlannedStage] = []
    in_order: list[OrderStage] = []
    for name, stage in found.items():
        weights = {key: float(weight) for key, weight in (stage.get("mixture") or {}).items()}
        for source in weights:
            if source not in source_tokens:
                raise InputError(
                    f"recipe.stages.{name}.mixture names the source '{source}', which the corpus "
                    f"does not have{did_you_mean(source, source_tokens)}."
                )
        weights = weights or {source: float(tokens) for source, tokens in source_tokens.items()}
        total = sum(weights.values())
        if total <= 0 or min(weights.values()) < 0:
            raise InputError(
                f"recipe.stages.{name}.mixture={weights}, expected weights of 0 or more, not all 0."
            )
        if lengths[name] < 1 or batch < 1 or batch % lengths[name]:
            raise InputError(
                f"recipe.global_batch_tokens={batch} is not a multiple of "
                f"recipe.stages.{name}.seq_len={lengths[name]}."
            )
        steps = math.ceil(budgets[name] / batch)
        shares = {source: weight / total for source, weight in weights.items()}
        samples = steps * batch // lengths[name]
        planned = stage.get("planned_tokens")  # where the stage is ended early
        begun_with = planned and math.ceil(planned / batch) * batch // lengths[name]
        in_order.append(OrderStage(lengths[name], samples, weights, begun_with))
        stages.append(PlannedStage(name, lengths[name], steps * batch, samples, shares))
    order, refused = None, ""
    try:
        order = SampleOrder(source_tokens, in_order, seed)
    except InputError as error:
        refused = str(error)
    name = str(recipe.get("name", "recipe"))
    return Plan(name, stages, dict(source_tokens), order, refused, max_epochs)


def plan_of_run(run: Path, config: Mapping[str, Any]) -> Plan:
    """The plan that a run has written down in `order.json`."""
    order = SampleOrder.from_json((run / "order.json").read_text())
    recipe = config["recipe"]
    names = list(recipe["stages"])
    stages = []
    for number, stage in enumerate(order.stages):
        total = sum(stage.weights.values())
        stages.append(
            PlannedStage(
                names[number] if number < len(names) else f"stage {number + 1}",
                stage.seq_len,
                stage.samples * stage.seq_len,
                stage.samples,
                {source: weight / total for source, weight in stage.weights.items()},
            )
        )
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
