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
        rope_scaling=config.rope_scaling.over(model.rope_scaling),
    )


def network_after(model: ModelConfig, plan: StagePlan, step: int) -> ModelConfig:
    """Returns the network config after `step` steps, which is that of the last step's stage.

    Its `max_seq_len` is the model's. Before a stage with longer sequences and another RoPE, it is
    the length of the longest sequences so far, because the network of that step has no positions
    for longer ones.
    """
    stage = plan.at(max(0, step - 1))
    network = network_of(model, stage)
    longest = max(other.seq_len for other in plan.stages[: stage.index + 1])
    for later in plan.stages[stage.index + 1 :]:
        rope = network_of(model, later)
        if later.seq_len > longest and (rope.rope_theta, rope.rope_scaling) != (
            network.rope_theta,
            network.rope_scaling,
        ):
            return replace(network, max_seq_len=longest)
    return network


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
