"""Decides which edition of the corpus each stage of a run reads.

A corpus can grow while a run is in progress. The run continues on the edition that it was started
with, unless the key `edition` of a stage names a later one. The decisions are recorded, in
`env.json` and in each checkpoint, and kept at every later start, so that the order of samples does
not depend on when a corpus grew.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from data_pipeline.sampling.recipe import StagePlan
from data_pipeline.sampling.stage_sources import LATEST
from data_pipeline.store.manifest import Manifest
from pretrain.branches.corpora import read_elsewhere
from pretrain.checkpoints import find
from pretrain.config import PretrainConfig
from pretrain.processes import Processes

Editions = list[dict[str, Any]]
"""For each stage, its name (`stage`), the number of the edition that it reads (`edition`), the
value of its key (`asked`), and the fingerprint of that edition (`data`). `elsewhere` marks a stage
that the trunk of a branch read in another corpus, whose fingerprint it has."""


def settle_editions(
    config: PretrainConfig, corpus: Manifest, processes: Processes
) -> tuple[StagePlan, Editions]:
    """Sets the edition of every stage to a number, the same on all ranks, and plans the stages.

    Every rank must call it. Rank 0 reads what earlier starts recorded.
    """

    def choose() -> tuple[list[int], list[dict[str, Any]]]:
        elsewhere = read_elsewhere(config, corpus)
        return choose_editions(config, corpus, len(elsewhere)), elsewhere

    numbers, elsewhere = find.on_main(choose, processes)
    return plan_editions(config, corpus, numbers, elsewhere)


def plan_editions(
    config: PretrainConfig,
    corpus: Manifest,
    numbers: list[int],
    elsewhere: list[dict[str, Any]] | None = None,
) -> tuple[StagePlan, Editions]:
    """Sets the edition of every stage to a number, and returns the stages and what to record.

    elsewhere: what `read_elsewhere` returns for the first stages, which were read in another
        corpus. Their numbers are those of the first stage that the run reads itself.

    Raises InputError if the corpus has no such edition, or a stage does not fit its edition.
    """
    asked = {name: stage.edition for name, stage in config.recipe.stages.items()}
    foreign = elsewhere or []
    numbers = [numbers[len(foreign)]] * len(foreign) + numbers[len(foreign) :]
    for stage, number in zip(config.recipe.stages.values(), numbers, strict=True):
        stage.edition = number
    for stage, known in zip(config.recipe.stages.values(), foreign, strict=False):
        stage.source_tokens = dict(known["source_tokens"])
    plan = StagePlan(config.recipe, corpus.edition_tokens("train"))
    prints = {number: corpus.at_edition(number).fingerprint for number in set(numbers)}
    editions: Editions = [
        {
            "stage": stage.name,
            "edition": stage.edition,
            "asked": asked[stage.name],
            "data": prints[stage.edition],
        }
        for stage in plan.stages
    ]
    for record, known in zip(editions, foreign, strict=False):
        record |= {"data": known["data"], "elsewhere": True}
    return plan, editions


def choose_editions(config: PretrainConfig, corpus: Manifest, elsewhere: int = 0) -> list[int]:
    """Returns the number of the edition that each stage reads.

    The first `elsewhere` stages, which were read in another corpus, have the number 0.

    A stage without a number keeps the edition that was recorded, if the corpus still has it. A new
    stage reads that of the stage before, and a new run the newest.
    """
    about = recorded(config)
    records = {record["stage"]: record for record in about.get("editions", [])}
    first = about.get("data", about.get("data_fingerprint"))
    newest = corpus.edition_count
    numbers: list[int] = []
    for name, stage in config.recipe.stages.items():
        if len(numbers) < elsewhere:
            numbers.append(0)
            continue
        record = records.get(name) or ({"data": first} if first and not numbers else None)
        same = corpus.find_edition(record["data"]) if record else None
        kept = same.edition_count if same else 0
        before = numbers[-1] if numbers else 0
        if stage.edition == LATEST:
            is_planned = record is not None and record.get("asked") == LATEST
            numbers.append(kept if kept and is_planned else newest)
        elif stage.edition is not None:
            numbers.append(stage.edition)
        else:
            numbers.append(max(kept, before) or newest)
    return numbers


def recorded(config: PretrainConfig) -> dict[str, Any]:
    """Returns what the last start of the run recorded, from env.json or else from a checkpoint.

    The result is empty for a new run.
    """
    try:
        about: dict[str, Any] = json.loads((Path(config.run_dir) / "env.json").read_text())
    except (OSError, ValueError):
        folder = Path(config.run_dir) / "checkpoints"
        about = next(iter(find.manifests(folder, config.checkpoint.copy_to) or []), {})
    return about
