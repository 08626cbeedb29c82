"""The plan of a training command, which stands behind `--`."""

from __future__ import annotations

from dataclasses import replace

from conf.errors import InputError
from launch.plan.outlook import PlanConfig, source_tokens
from launch.training import Training


def of_run(config: PlanConfig, run: Training) -> PlanConfig:
    """The plan of a training command: model, recipe, optimizer, parallelism and precision are its
    own, the corpus too where it is here."""
    settings = run.settings()
    data: str | None = config.data or settings.data.folder
    try:
        source_tokens(replace(config, data=data))
    except InputError:
        if config.data is not None:
            raise
        print(f"data.folder={data} is not here: planned without its sizes.")
        data = None
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
