"""The network as it is at a step: what a stage changes of `model`, in one place.

The training, validation, tasks, checkpoints and exports all ask here, so that what is exported is
what was trained.
"""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

from data_pipeline.sampling.recipe import ScheduledStage, StagePlan
from model.config import ModelConfig
from pretrain.recipe import training_config


def network_of(model: ModelConfig, stage: ScheduledStage) -> ModelConfig:
    """Returns the network of a stage; model: that of the run."""
    return replace(model, rope_theta=training_config(stage).rope_theta or model.rope_theta)


def network_after(model: ModelConfig, plan: StagePlan, step: int) -> ModelConfig:
    """Returns the network of a run after `step` steps: that of the stage of the last of them."""
    return network_of(model, plan.at(max(0, step - 1)))


def network_of_checkpoint(
    about: dict[str, Any], model: ModelConfig, plan: StagePlan
) -> ModelConfig:
    """Returns the network whose weights a checkpoint holds; about: what it states. Checkpoints from
    before they stated it have the one that follows from the run's config."""
    if "network" not in about:
        return network_after(model, plan, about["step"])
    known = {field.name for field in fields(ModelConfig)}
    return replace(model, **{key: v for key, v in about["network"].items() if key in known})
