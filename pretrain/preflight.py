"""What a run would be refused for, checked before it is started or queued.

`launch` calls this for the processes that a job will have. What is not there yet, or cannot be seen
from this machine (data that an earlier step makes, a URL, a folder of the cluster), is left to the
run itself.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch

from conf.machine import bf16_verdict, processor
from data_pipeline.sampling.recipe import RecipeConfig, StagePlan
from data_pipeline.store.manifest import FILE, Manifest, load_manifest
from data_pipeline.store.storage import is_remote
from model.families.folder import read_config
from pretrain.checkpoints import files
from pretrain.checks import (
    Job,
    check_run,
    check_tasks_package,
    sample_order,
)
from pretrain.config import EvaluationConfig, PretrainConfig
from pretrain.health.changes import check_changes
from pretrain.health.stop import check_stop_file
from pretrain.model_choice import check_initial
from pretrain.planning.auto import pick_layout
from pretrain.planning.layouts import Machine
from pretrain.precision_choice import precision_before
from pretrain.resume_checks import check_resume

ENDLESS = 10**15
"""Tokens of each source where no corpus can be read."""


def preflight(config: PretrainConfig, job: Job) -> None:
    """Raises InputError, in the words of `python -m pretrain`, where the run would be refused as
    this job. Writes nothing."""
    config = copy.deepcopy(config)  # what is settled here is not the caller's
    check_stop_file(Path(config.run_dir))
    if config.precision == "auto":
        config.precision = fitting_precision(config, job)
    check_tasks(config.evaluation, job)
    manifest = readable_manifest(config.data.folder, job)
    check_plan(config, manifest, job)
    saved = files.listed(Path(config.run_dir) / "checkpoints")
    if saved and manifest is not None:
        check_last_start(config, manifest, saved[0])
    elif not saved and config.init_from and (job.here or Path(config.init_from).is_dir()):
        check_initial(read_config(Path(config.init_from)), config.model, config.init_from)


def check_plan(config: PretrainConfig, manifest: Manifest | None, job: Job) -> None:
    """Raises InputError where the layout, the recipe and the data do not fit each other or the
    job."""
    plan = StagePlan(config.recipe, train_tokens(config.recipe, manifest))
    check_run(config, plan, manifest, job)
    if config.parallel.auto:
        pick_layout(
            config, plan, Machine(job.world_size, job.ranks_per_node, job.memory_bytes, job.device)
        )
    if manifest is not None:
        sample_order(config, plan, manifest)


def check_last_start(config: PretrainConfig, manifest: Manifest, newest: Path) -> None:
    """Raises InputError where a run that was begun cannot go on as it is configured now.

    newest: its last checkpoint, whose bytes are verified when the run starts.
    """
    plan = StagePlan(config.recipe, manifest.source_tokens("train"))
    try:
        about = files.read_manifest(newest)
    except (OSError, ValueError):
        return  # the run goes back to the one before it
    order = sample_order(config, plan, manifest)
    check_resume(newest, about, config, manifest, plan, order)
    check_changes(config)


def fitting_precision(config: PretrainConfig, job: Job) -> str:
    """Returns what `auto` becomes: what the run was made with, or what this machine multiplies;
    still `auto` where the job is elsewhere."""
    here = replace(config.checkpoint, copy_to=None)  # an object store may not answer for minutes
    before = precision_before(replace(config, checkpoint=here))
    if before or not job.here:
        return before or "auto"
    return "bf16" if bf16_verdict(processor(torch.device(job.device))).native else "fp32"


def check_tasks(config: EvaluationConfig, job: Job) -> None:
    """Raises InputError where lm-eval or a task that is to be scored during training is not
    there."""
    elsewhere = config.task_folder and not job.here and not Path(config.task_folder).exists()
    if not config.tasks or not job.packages or elsewhere:
        return
    check_tasks_package(config)
    from eval.inloop.tasks import check_task_names

    check_task_names(config)


def readable_manifest(folder: str, job: Job) -> Manifest | None:
    """Returns the manifest of a corpus, or None where it is left to the run to read it: it is
    remote, or is not there and the job does not run on this machine."""
    if is_remote(folder) or not (job.here or (Path(folder) / FILE).is_file()):
        return None
    return load_manifest(folder)


def train_tokens(recipe: RecipeConfig, manifest: Manifest | None) -> Mapping[str, int]:
    """Returns the training tokens of each source; endless for those that the recipe names where
    there is no corpus."""
    if manifest is not None:
        return manifest.source_tokens("train")
    named = {source for stage in recipe.stages.values() for source in stage.mixture}
    return dict.fromkeys(sorted(named) or ["all"], ENDLESS)
