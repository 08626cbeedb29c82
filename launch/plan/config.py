"""Configuration of `python -m launch plan`."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from omegaconf import MISSING

from conf.errors import InputError, one_of
from launch.plan.cluster import ClusterConfig
from model.config import ModelConfig
from pretrain.averages.config import EmaConfig
from pretrain.config import PRECISION_CHOICES, OptimConfig, ParallelConfig
from pretrain.recipe import TrainingRecipeConfig

GOOD_EPOCHS = 4.0
"""Number of times a text can be repeated at little cost in quality (arXiv 2305.16264)."""


@dataclass
class PlanConfig:
    """Keys of the run to plan, and the cluster it will use.

    The arguments of a training run may follow `--` instead, as for `python -m launch slurm`. All
    keys of the run are then taken from there.

    model, recipe, optim, parallel, objective, ema: same as for python -m pretrain.
    init_from: a Hugging Face folder, whose model is used if no model= is given.
    cluster: the name of a file in conf/cluster, or the path of any file.
    nodes: number of nodes; null for the number in the cluster's file.
    precision: precision of the matrix products; auto takes bf16 if the cluster's file gives a
        bf16_tflops above 0, else fp32.
    max_epochs: number of passes over a source above which the plan warns.
    data: folder of the tokenized corpus; null to plan without one.
    out: path of the HTML page to write; null for the terminal only.
    overwrite: replaces `out` if it is a page that Headwater made.
    show: number of layouts in the table.
    calibration: a file of speeds, memory and launch times measured on one of the cluster's GPUs,
        which `python benchmarks/gpu_session.py` writes, or null.
    """

    model: ModelConfig = MISSING
    init_from: str | None = None
    recipe: TrainingRecipeConfig = MISSING
    optim: OptimConfig = MISSING
    parallel: ParallelConfig = MISSING
    objective: dict[str, Any] = field(default_factory=lambda: {"name": "cross_entropy"})
    cluster: ClusterConfig = MISSING
    nodes: int | None = None
    precision: str = "auto"
    ema: EmaConfig = field(default_factory=EmaConfig)
    data: str | None = None
    max_epochs: float = GOOD_EPOCHS
    calibration: str | None = None
    out: str | None = None
    overwrite: bool = False
    show: int = 5

    def __post_init__(self) -> None:
        one_of("precision", self.precision, PRECISION_CHOICES)
        if self.nodes is not None:
            self.cluster = replace(self.cluster, nodes=self.nodes)
        if self.show < 1:
            raise InputError(f"show={self.show}: expected 1 or more.")
        if self.precision == "auto":
            self.precision = "bf16" if self.cluster.bf16_tflops else "fp32"
        peaks = {"bf16": self.cluster.bf16_tflops}
        peaks |= dict.fromkeys(("fp8", "fp8_rowwise"), self.cluster.fp8_tflops)
        if not peaks.get(self.precision, 1.0):
            other = "bf16" if self.cluster.bf16_tflops else "fp32"
            raise InputError(
                f"precision={self.precision}: not supported on {self.cluster.gpu}. Use "
                f"precision={other}."
            )
