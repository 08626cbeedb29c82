"""Objectives: the losses that training can minimize. Each has one file and one registry line.

An objective runs the model on a batch and returns sums over the batch's targets. The trainer adds
the sums of all batches and ranks, and divides once by the number of targets, so that every layout
takes the same step. The plain language-model loss is

    class CrossEntropy:
        metrics = ()

        def __call__(self, model, batch):
            loss, by_sample = model(
                batch.tokens, batch.labels, batch.cu_seqlens, per_sample=True
            )
            return Loss(loss, by_sample)

An objective with options is a dataclass: `objective=z_loss objective.coefficient=1e-3` builds
`ZLoss(coefficient=1e-3)`. Its metrics are recorded per target next to `loss`, which remains the
cross-entropy; validation measures the cross-entropy alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any, NamedTuple, Protocol

from torch import Tensor

from conf.errors import one_of
from conf.options import read_options
from data_pipeline.sampling.batches import Batch
from model.network import Decoder

OBJECTIVES = {
    "cross_entropy": "pretrain.objectives.cross_entropy:CrossEntropy",
    "z_loss": "pretrain.objectives.z_loss:ZLoss",
}
"""Class of each objective as `module:class`, by the name of the objective."""


class Loss(NamedTuple):
    """Sums over the targets of a batch.

    total: scalar float32, the loss to differentiate.
    by_sample: (batch,) float32, the summed cross-entropy of each sample, without gradient.
    metrics: scalar float32 tensors in the order of the objective's `metrics`, without gradient.
    """

    total: Tensor
    by_sample: Tensor
    metrics: tuple[Tensor, ...] = ()


class Objective(Protocol):
    """A loss to minimize.

    metrics: names of further sums, which are recorded per target.
    """

    metrics: tuple[str, ...]

    def __call__(self, model: Decoder, batch: Batch) -> Loss:
        """Returns the loss of a batch as sums over its targets."""
        ...


def build_objective(config: Mapping[str, Any]) -> Objective:
    """Returns the objective of the config group `objective`.

    Raises InputError if the objective or one of its options is unknown.
    """
    options = dict(config)
    name = str(options.pop("name", None))
    one_of("objective.name", name, OBJECTIVES)
    module, _, class_name = OBJECTIVES[name].partition(":")
    objective: Objective = read_options(
        "objective", getattr(import_module(module), class_name), options
    )
    return objective
