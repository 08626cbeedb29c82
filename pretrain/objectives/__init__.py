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

An objective that learns from a teacher is a `TaughtObjective`, which is given the run before the
first step (`pretrain.objectives.distill`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from conf.errors import one_of
from conf.options import read_options
from data_pipeline.sampling.batches import Batch
from data_pipeline.sampling.order import SampleOrder
from data_pipeline.sampling.recipe import StagePlan
from data_pipeline.store.manifest import Manifest
from model.config import ModelConfig
from model.network import Decoder
from pretrain.config import PretrainConfig
from pretrain.loader import Attach
from pretrain.parallel.mesh import Layout

OBJECTIVES = {
    "cross_entropy": "pretrain.objectives.cross_entropy:CrossEntropy",
    "z_loss": "pretrain.objectives.z_loss:ZLoss",
    "distill": "pretrain.objectives.distill.objective:Distill",
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


@dataclass(frozen=True)
class Setting:
    """The run that an objective trains a model in.

    Attributes:
        config: The run, without any `auto`.
        manifest: The corpus.
        plan: The stages.
        order: The order of samples.
        layout: The device mesh.
        device: The device of this process.
        step: Number of steps that are done.
        data: Fingerprint of the data that each stage reads.
    """

    config: PretrainConfig
    manifest: Manifest
    plan: StagePlan
    order: SampleOrder
    layout: Layout
    device: torch.device
    step: int
    data: Sequence[str]


class TaughtObjective(ABC):
    """Base class of objectives that learn from a teacher.

    Attributes:
        top_k: Number of tokens in an answer of the teacher.
        attach: Adds the answers of a cache to micro-batches, in the loader's threads; None if the
            teacher is a network.
    """

    top_k: int
    attach: Attach | None = None

    @property
    @abstractmethod
    def network(self) -> ModelConfig | None:
        """The network that runs on the batches of the model; None if the teacher is a cache."""

    @property
    @abstractmethod
    def identity(self) -> Mapping[str, Any]:
        """The name of the teacher in env.json, checkpoints, the report and the model card."""

    @abstractmethod
    def check(self, config: PretrainConfig, plan: StagePlan, manifest: Manifest) -> None:
        """Raises InputError if the teacher cannot teach this run. It has no side effects."""

    @abstractmethod
    def prepare(self, setting: Setting) -> None:
        """Loads the teacher. Every rank must call it, before the first batch."""


def taught(objective: Objective) -> TaughtObjective | None:
    """Returns the objective if it learns from a teacher, else None."""
    return objective if isinstance(objective, TaughtObjective) else None


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
