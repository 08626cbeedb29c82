"""A training run, as `setup` builds it for the trainer."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from data_pipeline.sampling.order import SampleOrder
from data_pipeline.sampling.recipe import StagePlan
from data_pipeline.store.manifest import Manifest
from model.network import Decoder
from pretrain.attention_choice import Timing
from pretrain.branches.trunk import Trunk
from pretrain.editions import Editions
from pretrain.loader import Loader
from pretrain.objectives import Objective
from pretrain.parallel.mesh import Layout


@dataclass
class Run:
    """The parts of a training run, with the state of its last checkpoint loaded.

    manifest: the edition of the corpus that the first stage reads, which validations use.
    checkpoints: the folder of checkpoints.
    step: number of steps done.
    checkpoint: the checkpoint from which the run resumes; None at step 0.
    metadata: metadata of that checkpoint; empty at step 0.
    documents: per source, the number of documents that were trained on to their end.
    attention: the attention backend per kind of stage.
    editions: the edition of the corpus that each stage reads.
    objective: the loss to minimize, with its teacher loaded if it has one.
    trunk: the step of another run that the run started from, or None.
    at_fork: whether the run starts from that step now, and has no checkpoint of its own yet.
    """

    manifest: Manifest
    plan: StagePlan
    order: SampleOrder
    layout: Layout
    model: Decoder
    optimizer: torch.optim.Optimizer
    loader: Loader
    checkpoints: Path
    step: int
    checkpoint: Path | None
    metadata: dict[str, Any]
    documents: dict[str, int]
    attention: dict[str, Timing]
    editions: Editions
    objective: Objective
    trunk: Trunk | None = None
    at_fork: bool = False
