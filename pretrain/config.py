"""What a training run is made of, as `conf/command/pretrain.yaml` and its groups state it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from conf.errors import InputError, one_of
from conf.wandb_run import LoggerConfig
from data_pipeline.sampling.recipe import ScheduledStage
from model.config import ModelConfig
from pretrain.health.config import HealthConfig
from pretrain.recipe import TrainingRecipeConfig, training_config

PRECISIONS = ("fp32", "bf16", "fp8", "fp8_rowwise")
AUTO = "auto"
PRECISION_CHOICES = (AUTO, *PRECISIONS)
MESH = ("dp_replicate", "dp_shard", "cp", "tp")
"""Dimensions of the device mesh, the outermost first: neighbours talk most."""


@dataclass
class DataConfig:
    """folder: made by `python -m data_pipeline tokenize`, local or a URL such as s3://bucket/corpus.

    max_epochs: how often a source may be read; a plan that needs more is refused.
    prefetch_steps: steps that are read while one trains.
    cache_bytes: of a remote corpus on this machine's disk, for each process.
    """

    folder: str = MISSING
    max_epochs: float = 4.0
    prefetch_steps: int = 2
    cache_bytes: int = 4 << 30

    def __post_init__(self) -> None:
        if self.prefetch_steps < 0:
            raise InputError(f"data.prefetch_steps={self.prefetch_steps}, expected 0 or more.")


@dataclass
class ParameterGroupConfig:
    """Parameters with a learning rate or a weight decay of their own.

    match: glob of parameter names, such as `embed_tokens.*` or `layers.0.*`; a parameter belongs to
        the first group that matches it.
    lr_scale: multiplies the learning rate. weight_decay: null for what it is without the group.
    """

    match: str = MISSING
    lr_scale: float = 1.0
    weight_decay: float | None = None


@dataclass
class OptimConfig:
    """The optimizer, with a learning rate that depends on the tokens trained on.

    name: adamw, muon or another of `pretrain.optim.OPTIMIZERS`; muon updates the matrices of the
        blocks and AdamW the rest.
    options: options of that optimizer, such as momentum and ns_steps (iterations of Newton-Schulz)
        of muon.
    groups: parameters by name that get an lr_scale or a weight_decay of their own, as in
        groups={embeddings: {match: "embed_tokens.*", lr_scale: 0.1, weight_decay: 0.0}}.
    decay_embeddings, decay_norms: whether weight decay applies to them too.
    max_grad_norm: gradients of a larger norm are scaled down to it; 0 for no clipping.
    schedule: cosine, linear, constant or wsd, after a linear warm-up. wsd stays at the top until
        the last decay_tokens and then falls as decay_shape says: linear, cosine or sqrt (1 - sqrt
        of the progress).
    """

    name: str = "adamw"
    learning_rate: float = MISSING
    min_learning_rate: float = 0.0
    warmup_tokens: int = 0
    schedule: str = "cosine"
    decay_tokens: int = 0
    decay_shape: str = "sqrt"
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.1
    decay_embeddings: bool = False
    decay_norms: bool = False
    max_grad_norm: float = 1.0
    options: dict[str, Any] = field(default_factory=dict)
    groups: dict[str, ParameterGroupConfig] = field(default_factory=dict)

    def __post_init__(self) -> None:
        one_of("optim.schedule", self.schedule, ("cosine", "linear", "constant", "wsd"))
        one_of("optim.decay_shape", self.decay_shape, ("linear", "cosine", "sqrt"))
        if (self.decay_tokens > 0) != (self.schedule == "wsd"):
            raise InputError(
                f"optim.decay_tokens={self.decay_tokens} with optim.schedule={self.schedule}: "
                "schedule=wsd needs decay_tokens above 0, the others take none."
            )
        if self.min_learning_rate > self.learning_rate:
            raise InputError(
                f"optim.min_learning_rate={self.min_learning_rate} is above "
                f"optim.learning_rate={self.learning_rate}."
            )


@dataclass
class ParallelConfig:
    """How the processes share the work; -1 for dp_shard takes all that the others leave.

    dp_replicate: copies of the model; dp_shard: processes that split weights and optimizer states
        (FSDP2) and have samples of their own; cp: processes that share every sequence (context
        parallel), which split weights too; tp: processes that share every matrix and, between
        them, the sequence.
    micro_batch_tokens: tokens of one forward pass on one rank at most; what is missing to
        recipe.global_batch_tokens is accumulated. auto takes what fits, from the plan of memory.
    activation_checkpointing: what backward computes again to save memory: none, selective (all but
        matrix products and attention), or full (whole blocks).
    reshard_after_forward: whether a block's gathered weights are dropped between its forward and
        backward pass; null drops them only where processes split the weights, and nowhere else
        takes the time to make them twice.
    compile: torch.compile of each block, true or false; auto compiles on CUDA, and on a CPU whose
        run is long enough to earn the time back.
    async_tp: tensor parallel's talk runs while matrices are multiplied; compiled, on GPUs.
    attention: backend, `auto` or one of `model.attention.backends`.
    auto: takes sizes, micro_batch_tokens and activation_checkpointing (at least what is given)
        from the plan of memory.
    """

    dp_replicate: int = 1
    dp_shard: int = -1
    cp: int = 1
    tp: int = 1
    micro_batch_tokens: Any = AUTO
    reshard_after_forward: bool | None = None
    activation_checkpointing: str = "none"
    compile: Any = AUTO
    async_tp: bool = False
    attention: str = "auto"
    auto: bool = False

    def __post_init__(self) -> None:
        one_of(
            "parallel.activation_checkpointing",
            self.activation_checkpointing,
            ("none", "selective", "full"),
        )
        tokens = self.micro_batch_tokens
        if tokens != AUTO and (type(tokens) is not int or tokens < 1):
            raise InputError(
                f"parallel.micro_batch_tokens={tokens}: expected a number of tokens above 0, or "
                "auto."
            )
        if self.compile not in (AUTO, True, False):
            raise InputError(f"parallel.compile={self.compile}: expected auto, true or false.")

    def gathers_twice(self, shards: int) -> bool:
        """Whether backward gathers the weights again that `shards` processes split."""
        return shards > 1 if self.reshard_after_forward is None else self.reshard_after_forward


@dataclass
class ValidationConfig:
    """every_steps: 0 for only before the first and after the last step.

    tokens: held-out tokens of each source at each validation.
    """

    every_steps: int = 100
    tokens: int = 65536


@dataclass
class EvaluationConfig:
    """Tasks of lm-eval on the model in place. tasks, task_folder, num_fewshot, limit: as
    `python -m eval lm_eval` takes them; no tasks, no evaluation.

    every_steps: 0 for only after the last step.
    """

    tasks: Any = field(default_factory=list)
    task_folder: str | None = None
    num_fewshot: int | None = None
    limit: int | None = None
    every_steps: int = 1000

    def __post_init__(self) -> None:
        for key, least in (("limit", 1), ("every_steps", 0)):
            value = getattr(self, key)
            if value is not None and value < least:
                raise InputError(f"evaluation.{key}={value}, expected {least} or more.")


@dataclass
class CheckpointConfig:
    """When the state is saved (beside after the last step), which saves stay, and where.

    every_steps, every_tokens, every_minutes: 0 for never; whichever comes first.
    interval: null, or `auto`: instead of every_steps, the interval that loses the least (Daly) at
        the measured cost of a save and mttf_hours, the mean time between failures of the whole job.
    short_lived_every_steps: saves between those, each only until the next of either kind.
    keep_last: how many stay on disk; keep_every: and those of multiples of so many steps;
        keep_best: and so many with the lowest held-out loss, of those saved at a validation.
    asynchronous: files are written while the training goes on.
    wait_seconds: that a save waits for an earlier one before it is left out.
    timeout_minutes: after which a writer counts as hung and is killed.
    copy_to: a URL (s3://bucket/run ...) that gets a copy of each, less the short-lived ones; a run
        folder without them, or with bad ones, is filled from there.
    """

    every_steps: int = 100
    every_tokens: int = 0
    every_minutes: float = 0.0
    interval: str | None = None
    mttf_hours: float = 0.0
    short_lived_every_steps: int = 0
    keep_last: int = 2
    keep_every: int = 0
    keep_best: int = 0
    asynchronous: bool = True
    wait_seconds: float = 60.0
    timeout_minutes: float = 30.0
    copy_to: str | None = None

    def __post_init__(self) -> None:
        if self.keep_last < 1:
            raise InputError(f"checkpoint.keep_last={self.keep_last}, expected at least 1.")
        if self.timeout_minutes <= 0:
            raise InputError(
                f"checkpoint.timeout_minutes={self.timeout_minutes}, expected more than 0."
            )
        for key in (
            *("every_steps", "every_tokens", "every_minutes", "short_lived_every_steps"),
            *("mttf_hours", "keep_every", "keep_best", "wait_seconds"),
        ):
            if getattr(self, key) < 0:
                raise InputError(f"checkpoint.{key}={getattr(self, key)}, expected 0 or more.")
        if self.copy_to is not None and "://" not in self.copy_to:
            raise InputError(
                f"checkpoint.copy_to={self.copy_to}, expected a URL such as s3://bucket/run."
            )
        if self.interval is not None:
            one_of("checkpoint.interval", self.interval, ("auto",))
            if not self.mttf_hours:
                raise InputError(
                    "checkpoint.interval=auto needs checkpoint.mttf_hours, the mean time between "
                    "failures of the whole job in hours (3700 / nodes on common clusters)."
                )


@dataclass
class ProfileConfig:
    """Files in `profile/` of the run folder.

    steps: to trace, counted from 1; neighbours share a file. ranks: that write one each.
    memory: a snapshot of CUDA's memory too.
    """

    steps: list[int] = field(default_factory=list)
    ranks: list[int] = field(default_factory=lambda: [0])
    memory: bool = False

    def __post_init__(self) -> None:
        if any(step < 1 for step in self.steps):
            raise InputError(f"profile.steps={self.steps}, expected steps from 1 on.")


@dataclass
class PretrainConfig:
    """One run. `run_dir` holds all of it; the same command run again continues it.

    init_from: a Hugging Face folder to start from, null for fresh weights. Without model= the model
        is the folder's; model.max_seq_len and model.rope_theta may differ from it.
    precision: fp32, or bf16 with float32 master weights and reductions, or that with the matrix
        products of the blocks in fp8 (fp8: one scale a matrix, fp8_rowwise: one a row); auto is
        bf16 where every process's hardware multiplies it, else fp32, and what the run was made
        with where it is resumed.
    objective: name of the loss to minimize, and its options; validation is cross-entropy always.
    allow_change: keys or groups of the config that may differ from the last start's, such as optim.
    gc_every_steps: Python's garbage is collected on all ranks after these; 0 leaves it to Python.
    report: a finished run ends in report.html of its folder (python -m eval report).
    stop_after: ends the run after this many steps of the plan (the schedule is the plan's), as if
        interrupted there, with a checkpoint; null for all of them.
    """

    name: str = MISSING
    run_dir: str = MISSING
    seed: int = 0
    device: str = "auto"
    precision: str = "auto"
    init_from: str | None = None
    report: bool = True
    stop_after: int | None = None
    allow_change: list[str] = field(default_factory=list)
    gc_every_steps: int = 100
    model: ModelConfig = MISSING
    data: DataConfig = field(default_factory=DataConfig)
    recipe: TrainingRecipeConfig = MISSING
    optim: OptimConfig = MISSING
    objective: dict[str, Any] = field(default_factory=lambda: {"name": "cross_entropy"})
    parallel: ParallelConfig = MISSING
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    profile: ProfileConfig = field(default_factory=ProfileConfig)
    health: HealthConfig = field(default_factory=HealthConfig)
    logger: LoggerConfig = MISSING

    def __post_init__(self) -> None:
        one_of("device", self.device, ("auto", "cpu", "cuda"))
        one_of("precision", self.precision, PRECISION_CHOICES)

    def precision_of(self, stage: ScheduledStage) -> str:
        """Returns the stage's own precision, or the run's."""
        return training_config(stage).precision or self.precision


def device_of(device: str, available: str) -> str:
    """Returns the device that a run uses, cpu or cuda.

    Args:
        device: The config's choice: cpu, cuda or auto.
        available: cuda if there are GPUs, else cpu.

    Raises:
        InputError: GPUs are requested and there are none.
    """
    if device == "cuda" and available != "cuda":
        raise InputError("device=cuda: there is no CUDA device. Use device=cpu or auto.")
    return available if device == "auto" else device
