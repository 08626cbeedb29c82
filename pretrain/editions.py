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

import torch.distributed as dist

from data_pipeline.sampling.recipe import StagePlan
from data_pipeline.sampling.stage_sources import LATEST
from data_pipeline.store.manifest import Manifest
from pretrain.checkpoints import find
from pretrain.config import PretrainConfig
from pretrain.processes import Processes

Editions = list[dict[str, Any]]
"""For each stage, its name (`stage`), the number of the edition that it reads (`edition`), the
value of its key (`asked`), and the fingerprint of that edition (`data`)."""


def settle_editions(
    config: PretrainConfig, corpus: Manifest, processes: Processes
) -> tuple[StagePlan, Editions]:
    """Sets the edition of every stage to a number, the same on all ranks, and plans the stages.

    Every rank must call it. Rank 0 reads what earlier starts recorded.
    """
    answer = [choose_editions(config, corpus) if processes.is_main else []]
    dist.broadcast_object_list(answer, src=0)
    return plan_editions(config, corpus, answer[0])


def plan_editions(
    config: PretrainConfig, corpus: Manifest, numbers: list[int]
) -> tuple[StagePlan, Editions]:
    """Sets the edition of every stage to a number, and returns the stages and what to record.

    Raises InputError if the corpus has no such edition, or a stage does not fit its edition.
    """
    asked = {name: stage.edition for name, stage in config.recipe.stages.items()}
    for stage, number in zip(config.recipe.stages.values(), numbers, strict=True):
        stage.edition = number
    plan = StagePlan(config.recipe, corpus.edition_tokens("train"))
    prints = {number: corpus.at_edition(number).fingerprint for number in set(numbers)}
    return plan, [
        {
            "stage": stage.name,
            "edition": stage.edition,
            "asked": asked[stage.name],
            "data": prints[stage.edition],
        }
        for stage in plan.stages
    ]


def choose_editions(config: PretrainConfig, corpus: Manifest) -> list[int]:
    """Returns the number of the edition that each stage reads.

    A stage without a number keeps the edition that was recorded, if the corpus still has it. A new
    stage reads that of the stage before, and a new run the newest.
    """
    about = recorded(config)
    records = {record["stage"]: record for record in about.get("editions", [])}
    first = about.get("data", about.get("data_fingerprint"))
    newest = corpus.edition_count
    numbers: list[int] = []
    for name, stage in config.recipe.stages.items():
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
