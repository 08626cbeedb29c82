"""Checks a run before it is started or queued.

`launch` calls these checks for the processes that a job will have. Inputs that do not exist yet or
cannot be seen from this machine (data that an earlier step makes, a URL, a folder on the cluster)
are checked when the run starts.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from conf.machine import bf16_verdict, processor
from data_pipeline.sampling.recipe import RecipeConfig, StagePlan
from data_pipeline.sampling.stage_sources import SourceTokens
from data_pipeline.store.manifest import FILE, Manifest, load_manifest
from data_pipeline.store.storage import is_remote
from model.families.folder import read_config
from pretrain.branches.corpora import read_elsewhere
from pretrain.branches.trunk import comparable, known_trunk
from pretrain.checkpoints import files
from pretrain.checks import (
    Job,
    check_run,
    check_run_folder,
    check_tasks_package,
    sample_order,
)
from pretrain.config import EvaluationConfig, PretrainConfig
from pretrain.editions import choose_editions, plan_editions
from pretrain.health.changes import check_changes
from pretrain.health.stop import check_stop_file
from pretrain.model_choice import check_initial
from pretrain.origin import check_same_tokenizer
from pretrain.planning.auto import pick_layout
from pretrain.planning.layouts import Machine
from pretrain.precision_choice import precision_before
from pretrain.resume_checks import check_resume

ENDLESS = 10**15
"""Tokens per source to assume if no corpus can be read."""


def preflight(config: PretrainConfig, job: Job) -> None:
    """Raises the InputError with which `python -m pretrain` would refuse to run as this job.

    The function writes no files.
    """
    config = copy.deepcopy(config)  # choices made here must not reach the caller
    check_run_folder(Path(config.run_dir))
    check_stop_file(Path(config.run_dir))
    if config.precision == "auto":
        config.precision = fitting_precision(config, job)
    check_tasks(config.evaluation, job)
    corpus = set_editions(config, job)
    check_plan(config, corpus, job)
    saved = files.checkpoints_in(Path(config.run_dir) / "checkpoints")
    if saved and corpus is not None:
        check_last_start(config, corpus, saved[0])
    elif config.branch_from and corpus is not None:
        trunk = known_trunk(config.branch_from, Path(config.run_dir))
        check_start(config, corpus, Path(trunk.label), comparable(trunk.about, config))
    elif not saved and config.init_from and (job.here or Path(config.init_from).is_dir()):
        check_initial(read_config(Path(config.init_from)), config.model, config.init_from)
        if corpus is not None:
            check_same_tokenizer(config.init_from, corpus)


def check_plan(config: PretrainConfig, corpus: Manifest | None, job: Job) -> None:
    """Raises InputError if the layout, recipe, data and job do not fit together."""
    plan = StagePlan(config.recipe, train_tokens(config.recipe, corpus))
    manifest = corpus.at_edition(plan.stages[0].edition) if corpus is not None else None
    check_run(config, plan, manifest, job)
    if config.parallel.auto:
        pick_layout(
            config, plan, Machine(job.world_size, job.ranks_per_node, job.memory_bytes, job.device)
        )
    if corpus is not None:
        sample_order(config, plan)


def check_last_start(config: PretrainConfig, corpus: Manifest, newest: Path) -> None:
    """Raises InputError if a run cannot continue with this config.

    newest: the last checkpoint of the run. Its bytes are verified only when the run starts.
    """
    try:
        about = files.read_manifest(newest)
    except (OSError, ValueError):
        return  # the run falls back to the checkpoint before it
    check_start(config, corpus, newest, about)
    check_changes(config)


def check_start(
    config: PretrainConfig, corpus: Manifest, path: Path, about: dict[str, Any]
) -> None:
    """Raises InputError if a run cannot continue from a checkpoint with the metadata `about`."""
    numbers, elsewhere = known_editions(config, corpus)
    plan, editions = plan_editions(config, corpus, numbers, elsewhere)
    check_resume(path, about, config, corpus, editions, plan, sample_order(config, plan))


def set_editions(config: PretrainConfig, job: Job) -> Manifest | None:
    """Sets the edition of every stage to a number, and returns the corpus.

    Returns None, and changes nothing, if only the run itself can read the corpus.
    """
    corpus = readable_manifest(config.data.folder, job)
    if corpus is not None:
        numbers, elsewhere = known_editions(config, corpus)
        plan_editions(config, corpus, numbers, elsewhere)
    return corpus


def known_editions(
    config: PretrainConfig, corpus: Manifest
) -> tuple[list[int], list[dict[str, Any]]]:
    """Returns the edition that each stage reads, as far as this machine knows it.

    The second value is what `read_elsewhere` returns.
    """
    local = config_without_mirror(config)
    elsewhere = read_elsewhere(local, corpus)
    return choose_editions(local, corpus, len(elsewhere)), elsewhere


def config_without_mirror(config: PretrainConfig) -> PretrainConfig:
    """Returns the config without the mirror of checkpoints, which may not answer for minutes."""
    return replace(config, checkpoint=replace(config.checkpoint, copy_to=None))


def fitting_precision(config: PretrainConfig, job: Job) -> str:
    """Returns the precision that `precision=auto` stands for.

    That is the precision of earlier starts, or else the one that suits this machine. If there were
    no earlier starts and the job runs on other machines, the precision remains `auto`.
    """
    before = precision_before(config_without_mirror(config))
    if before or not job.here:
        return before or "auto"
    return "bf16" if bf16_verdict(processor(torch.device(job.device))).native else "fp32"


def check_tasks(config: EvaluationConfig, job: Job) -> None:
    """Raises InputError if lm-eval or a task to score during training is missing."""
    elsewhere = config.task_folder and not job.here and not Path(config.task_folder).exists()
    if not config.tasks or not job.packages or elsewhere:
        return
    check_tasks_package(config)
    from eval.inloop.tasks import check_task_names

    check_task_names(config)


def readable_manifest(folder: str, job: Job) -> Manifest | None:
    """Returns the manifest of a corpus, or None if only the run itself can read the corpus.

    That is the case for a remote corpus, and for a missing one if the job runs on another machine.
    """
    if is_remote(folder) or not (job.here or (Path(folder) / FILE).is_file()):
        return None
    return load_manifest(folder)


def train_tokens(recipe: RecipeConfig, manifest: Manifest | None) -> SourceTokens:
    """Returns the training tokens per source of each edition of a corpus.

    Without a corpus, each source that the recipe names has ENDLESS tokens.
    """
    if manifest is not None:
        return manifest.edition_tokens("train")
    named = {source for stage in recipe.stages.values() for source in stage.mixture}
    return dict.fromkeys(sorted(named) or ["all"], ENDLESS)
