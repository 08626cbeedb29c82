"""The plan of a training command, which stands behind `--`."""

from __future__ import annotations

from dataclasses import replace

from conf.errors import InputError
from conf.text import GIB
from launch.plan.outlook import PlanConfig, source_tokens
from launch.training import Training
from pretrain.checks import Job, device_of
from pretrain.preflight import preflight


def of_run(config: PlanConfig, run: Training) -> PlanConfig:
    """Returns the plan of a training command: model, recipe, optimizer, parallelism and precision
    are its own, the corpus too where it is here. Raises InputError where `python -m pretrain` would
    refuse the run on this cluster."""
    settings = run.settings()
    data: str | None = config.data or settings.data.folder
    try:
        source_tokens(replace(config, data=data))
    except InputError:
        if config.data is not None:
            raise
        print(f"data.folder={data} is not here: planned without its sizes.")
        data = None
    cluster = config.cluster
    job = Job(
        cluster.world_size,
        device_of(settings.device, cluster.device),
        here=False,
        packages=False,
        node=cluster.gpus_per_node,
        memory=int(cluster.gpu_memory_gib * GIB),
    )
    preflight(replace(settings, data=replace(settings.data, folder=data or "")), job)
    return replace(
        config,
        model=settings.model,
        recipe=settings.recipe,
        optim=settings.optim,
        parallel=settings.parallel,
        precision=settings.precision,
        data=data,
        max_epochs=settings.data.max_epochs,
    )
