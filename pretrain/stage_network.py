"""Determines the network config at a step, with the changes that the step's stage makes to `model`.

Training, validation, tasks, checkpoints and exports all use this module, so that the exported
network is the trained one.
"""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

from data_pipeline.sampling.recipe import ScheduledStage, StagePlan
from model.config import ModelConfig
from pretrain.recipe import training_config


def network_of(model: ModelConfig, stage: ScheduledStage) -> ModelConfig:
    """Returns the network config of a stage of a run whose network config is `model`."""
    config = training_config(stage)
    return replace(
        model,
        rope_theta=config.rope_theta or model.rope_theta,
        rope_scaling=config.rope_scaling if config.rope_scaling.type else model.rope_scaling,
    )


def network_after(model: ModelConfig, plan: StagePlan, step: int) -> ModelConfig:
    """Returns the network config after `step` steps, which is that of the last step's stage."""
    return network_of(model, plan.at(max(0, step - 1)))


def network_of_checkpoint(
    about: dict[str, Any], model: ModelConfig, plan: StagePlan
) -> ModelConfig:
    """Returns the network config of a checkpoint with the metadata `about`.

    The metadata of old checkpoints lacks this config, so it is derived from the run's config.
    """
    if "network" not in about:
        return network_after(model, plan, about["step"])
    known = {field.name for field in fields(ModelConfig)}
    return replace(model, **{key: v for key, v in about["network"].items() if key in known})
