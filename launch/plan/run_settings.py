"""Takes the settings to plan from the training run whose arguments follow `--`."""

from __future__ import annotations

from dataclasses import replace

from conf.errors import InputError
from conf.text import GIB
from launch.plan.config import PlanConfig
from launch.plan.outlook import source_tokens
from launch.training import Training
from pretrain.branches.trunk import parse
from pretrain.checks import Job
from pretrain.config import device_of
from pretrain.preflight import preflight, set_editions


def take_run_settings(config: PlanConfig, run: Training) -> tuple[PlanConfig, int]:
    """Returns the config with the keys of a training run, and the step it branches from, or 0.

    Without `data`, the corpus is also that of the run, if it exists on this machine.

    Raises:
        InputError: `python -m pretrain` would refuse the run on this cluster.
    """
    settings = run.settings()
    data: str | None = config.data or settings.data.folder
    try:
        source_tokens(replace(config, data=data))
    except InputError:
        if config.data is not None:
            raise
        print(
            f"data.folder={data}: not on this machine. The plan does not use the size of the "
            "corpus."
        )
        data = None
    cluster = config.cluster
    job = Job(
        cluster.world_size,
        device_of(settings.device, cluster.device),
        here=False,
        packages=False,
        ranks_per_node=cluster.gpus_per_node,
        memory_bytes=int(cluster.gpu_memory_gib * GIB),
    )
    settings.data.folder = data or ""
    preflight(settings, job)
    set_editions(settings, job)
    planned = replace(
        config,
        model=settings.model,
        recipe=settings.recipe,
        optim=settings.optim,
        parallel=settings.parallel,
        objective=settings.objective,
        precision=settings.precision,
        ema=settings.ema,
        data=data,
        max_epochs=settings.data.max_epochs,
    )
    return planned, parse(settings.branch_from)[1] if settings.branch_from else 0
