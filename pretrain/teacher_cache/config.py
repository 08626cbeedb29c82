"""Config of `python -m pretrain teach`."""

from __future__ import annotations

from dataclasses import dataclass

from omegaconf import MISSING

from conf.errors import InputError, one_of
from pretrain.config import PRECISION_CHOICES
from pretrain.recipe import TrainingRecipeConfig

ACTIONS = ("teach", "plan", "verify")


@dataclass
class TeachConfig:
    """Configuration of the command. `recipe`, `data` and `seed` are those of the run to distill.

    model: the teacher: a Hugging Face folder, a run folder, or RUN@STEP for a step of a run.
    data: the tokenized corpus, data.folder of the run.
    branch_from: RUN@STEP to teach the steps of a branch from there on, whose `recipe` is given as
        for python -m pretrain. `data`, `seed` and `max_epochs` are those of its trunk.
    recipe: the recipe of the run, from which the order of samples is computed.
    seed: the seed of the run.
    max_epochs: data.max_epochs of the run.
    out: the folder to write.
    top_k: number of most probable tokens to store per position.
    steps: the steps to teach as first..last, counted from 1; null for all, and for a branch all
        of its own.
    do: teach; plan to print the size of the cache only; verify to read every byte of a finished
        cache and compare it with its checksums.
    precision: fp32 or bf16, for the teacher's matrix products; auto takes bf16 if the hardware
        supports it.
    device: cpu, cuda or auto.
    micro_batch_tokens: tokens per forward pass.
    unit_tokens: tokens per file. After a kill, at most one unit per process is computed again.
    rank, world: share of this process: every world-th unit, beginning with number rank. Without
        them, ranks of torchrun, jobs of a SLURM array and tasks of a SLURM step have their own.
    cache_bytes: disk space per process for the cache of a remote corpus.
    overwrite: whether to replace `out` if it is a cache that Headwater made.
    """

    model: str | None = None
    data: str | None = None
    branch_from: str | None = None
    recipe: TrainingRecipeConfig = MISSING
    seed: int = 0
    max_epochs: float = 4.0
    out: str = MISSING
    top_k: int = 64
    steps: str | None = None
    do: str = ACTIONS[0]
    precision: str = "auto"
    device: str = "auto"
    micro_batch_tokens: int = 16384
    unit_tokens: int = 1 << 20
    rank: int | None = None
    world: int | None = None
    cache_bytes: int = 4 << 30
    overwrite: bool = False

    def __post_init__(self) -> None:
        one_of("do", self.do, ACTIONS)
        one_of("device", self.device, ("auto", "cpu", "cuda"))
        one_of("precision", self.precision, tuple(p for p in PRECISION_CHOICES if "fp8" not in p))
        for key in ("top_k", "micro_batch_tokens", "unit_tokens"):
            if getattr(self, key) < 1:
                raise InputError(f"{key}={getattr(self, key)}: expected 1 or more.")
