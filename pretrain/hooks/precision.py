"""Matrix products in the precision of each stage; all ranks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from conf.errors import InputError, one_of
from data_pipeline.sampling.recipe import Stage, StagePlan
from pretrain.config import PRECISIONS, PretrainConfig
from pretrain.fp8 import apply_fp8, check_fp8
from pretrain.hardware import compute_dtype
from pretrain.hooks import Hook

if TYPE_CHECKING:
    from pretrain.trainer import Trainer


def precision_of(stage: Stage, config: PretrainConfig) -> str:
    """The stage's own, or the run's."""
    return stage.config.precision or config.precision


def check_precision(
    config: PretrainConfig, plan: StagePlan, tp: int, cp: int, device: torch.device
) -> None:
    """Raises InputError where a stage's precision cannot run here, or follow the run's."""
    for stage in plan.stages:
        precision = precision_of(stage, config)
        key = f"recipe.stages.{stage.name}.precision"
        one_of(key, precision, PRECISIONS)
        if compute_dtype(precision) != compute_dtype(config.precision):
            raise InputError(
                f"{key}={precision}, but precision={config.precision}: a stage can change "
                "between bf16, fp8 and fp8_rowwise only."
            )
        check_fp8(precision, config.model, tp, cp, config.parallel.micro_batch_tokens, device)


class PrecisionByStage(Hook):
    """Turns the linears of all blocks into those of the stage's precision, between steps."""

    def __init__(self, config: PretrainConfig) -> None:
        self.config = config
        self.now = config.precision

    def on_start(self, trainer: Trainer) -> None:
        """Takes that of the stage in which this process begins."""
        self.before_step(trainer)

    def before_step(self, trainer: Trainer) -> None:
        """Changes it with the stage."""
        wanted = precision_of(trainer.plan.at(trainer.step), self.config)
        if wanted != self.now:
            apply_fp8(trainer.model, wanted, trainer.processes.device)
            self.now = wanted
            trainer.publish({"kind": "event", "event": "precision", "precision": wanted})
