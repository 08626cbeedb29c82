"""Config of a training run, which `conf/command/pretrain.yaml` and its config groups fill in."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from conf.errors import InputError, one_of
from conf.wandb_run import LoggerConfig
from data_pipeline.sampling.recipe import ScheduledStage
from model.config import ModelConfig
from pretrain.averages.config import EmaConfig
from pretrain.health.config import HealthConfig
from pretrain.recipe import TrainingRecipeConfig, training_config

PRECISIONS = ("fp32", "bf16", "fp8", "fp8_rowwise")
AUTO = "auto"
PRECISION_CHOICES = (AUTO, *PRECISIONS)
MESH = ("dp_replicate", "dp_shard", "cp", "tp")
"""Dimensions of the device mesh, outermost to innermost. Inner dimensions communicate most."""


@dataclass
class DataConfig:
    """The tokenized corpus.

    folder: output of `python -m data_pipeline tokenize`, local or a URL such as s3://bucket/corpus.
    max_epochs: largest number of passes over a source; a recipe that needs more is refused.
    prefetch_steps: number of steps whose data is read ahead during training.
    cache_bytes: disk space per process for the cache of a remote corpus.
    """

    folder: str = MISSING
    max_epochs: float = 4.0
    prefetch_steps: int = 2
    cache_bytes: int = 4 << 30

    def __post_init__(self) -> None:
        if self.prefetch_steps < 0:
            raise InputError(f"data.prefetch_steps={self.prefetch_steps}: expected 0 or more.")


@dataclass
class ParameterGroupConfig:
    """Parameters with their own learning rate or weight decay.

    match: glob of parameter names, such as `embed_tokens.*` or `layers.0.*`; a parameter belongs to
        the first group that matches it.
    lr_scale: factor on the learning rate.
    weight_decay: weight decay of these parameters; null for the value they have without the group.
    """

    match: str = MISSING
    lr_scale: float = 1.0
    weight_decay: float | None = None


@dataclass
class OptimConfig:
    """The optimizer, with a learning rate that depends on the tokens trained on.

    name: adamw, muon or another of `pretrain.optim.OPTIMIZERS`; muon updates the matrices of the
        blocks and AdamW the rest.
    options: options of that optimizer, such as muon's momentum, ns_steps (number of Newton-Schulz
        iterations) and ns_coefficients (jordan or polar_express).
    groups: named groups of parameters with their own lr_scale or weight_decay, as in
        groups={embeddings: {match: "embed_tokens.*", lr_scale: 0.1, weight_decay: 0.0}}.
    decay_embeddings: whether weight decay also applies to embeddings.
    decay_norms: whether weight decay also applies to norms.
    max_grad_norm: norm to which larger gradients are scaled down; 0 for no clipping.
    schedule: cosine, linear, constant or wsd, each after a linear warm-up. wsd keeps the peak rate
        until the last decay_tokens, and then falls with the shape decay_shape: linear, cosine or
        sqrt (1 - sqrt of the progress).
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
            expected = "more than 0" if self.schedule == "wsd" else "0"
            raise InputError(
                f"optim.decay_tokens={self.decay_tokens}: expected {expected} with "
                f"optim.schedule={self.schedule}. Only wsd has a decay phase of its own."
            )
        if self.min_learning_rate > self.learning_rate:
            raise InputError(
                f"optim.min_learning_rate={self.min_learning_rate}: expected at most "
                f"optim.learning_rate={self.learning_rate}."
            )


@dataclass
class ParallelConfig:
    """Division of the work between processes.

    dp_replicate: number of replicas of the model.
    dp_shard: number of processes that shard weights and optimizer states (FSDP2), each with its own
        samples; -1 for all remaining processes.
    cp: number of processes that split every sequence (context parallelism). They shard weights too.
    tp: number of processes that split every matrix, and the activations between matrices along the
        sequence (tensor and sequence parallelism).
    micro_batch_tokens: largest number of tokens in a forward pass on one rank; gradients are
        accumulated up to recipe.global_batch_tokens. auto takes the most that fits into memory.
    activation_checkpointing: parts to recompute in the backward pass to save memory: none,
        selective (all but matrix products and attention), or full (whole blocks).
    sharded_accumulation: whether gradients are reduced after every micro-batch, so that a rank
        accumulates only its shard of them, true or false. false reduces them once per step and
        accumulates whole gradients in float32. auto takes false if these fit into memory.
    reshard_after_forward: whether the gathered weights of a block are freed between its forward and
        backward pass; null frees them if several processes shard the weights.
    compile: whether torch.compile compiles each block, true or false. auto compiles on CUDA, and on
        a CPU if the run is long enough to save more time than compiling takes.
    cuda_graphs: whether each micro-batch is launched as one CUDA graph, for small models on a
        single GPU; gradients are then reduced after every micro-batch.
    async_tp: whether tensor-parallel communication overlaps with matrix products; needs compile and
        GPUs.
    attention: auto, or a backend of `model.attention.backends`.
    auto: whether sizes, micro_batch_tokens, sharded_accumulation (if it is auto) and
        activation_checkpointing (at least the given one) are chosen so that the run fits into
        memory.
    """

    dp_replicate: int = 1
    dp_shard: int = -1
    cp: int = 1
    tp: int = 1
    micro_batch_tokens: Any = AUTO
    sharded_accumulation: Any = AUTO
    reshard_after_forward: bool | None = None
    activation_checkpointing: str = "none"
    compile: Any = AUTO
    cuda_graphs: bool = False
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
                f"parallel.micro_batch_tokens={tokens}: expected auto, or a number of tokens above "
                "0."
            )
        for key in ("compile", "sharded_accumulation"):
            if (value := getattr(self, key)) not in (AUTO, True, False):
                raise InputError(f"parallel.{key}={value}: expected auto, true or false.")

    def reshards_after_forward(self, shards: int) -> bool:
        """Returns whether a block's weights, sharded `shards` ways, are regathered in backward."""
        return shards > 1 if self.reshard_after_forward is None else self.reshard_after_forward


@dataclass
class ValidationConfig:
    """Measurement of the held-out loss during training.

    every_steps: number of steps between validations; 0 validates only before the first step and
        after the last.
    tokens: number of held-out tokens per source in each validation.
    """

    every_steps: int = 100
    tokens: int = 65536


@dataclass
class EvaluationConfig:
    """Evaluation of the model with lm-eval tasks during training.

    tasks, task_folder, num_fewshot, limit: the keys of `python -m eval lm_eval` with these names.
    every_steps: number of steps between evaluations; 0 evaluates only after the last step.
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
                raise InputError(f"evaluation.{key}={value}: expected {least} or more.")


@dataclass
class CheckpointConfig:
    """Checkpoints during training: how often, how many, and where. The last step is always saved.

    every_steps: interval between saves in steps, which may be combined with the next two; 0 for
        never.
    every_tokens: interval between saves in tokens; 0 for never.
    every_minutes: interval between saves in minutes; 0 for never.
    interval: null, or auto to replace every_steps by the interval that loses the least time, which
        Daly's formula gives for mttf_hours and the measured cost of a save.
    mttf_hours: mean time between failures of the whole job.
    short_lived_every_steps: interval in steps of additional saves, each kept only until the next
        save; 0 for none.
    keep_last: number of newest checkpoints kept on disk.
    keep_every: interval in steps; checkpoints at its multiples are kept permanently. 0 for none.
    keep_best: number of checkpoints with the lowest held-out loss that are kept too.
    keep_steps: steps that are saved and kept permanently, such as those of later branches; a run
        that cannot save one of them ends.
    asynchronous: whether files are written while training continues.
    wait_seconds: time that a save waits for an earlier save before it is skipped.
    timeout_minutes: time after which a writer counts as hung and is killed.
    copy_to: URL (s3://bucket/run) of a mirror of all but short-lived checkpoints. Checkpoints that
        are missing or damaged in the run folder are restored from it.
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
    keep_steps: list[int] = field(default_factory=list)
    asynchronous: bool = True
    wait_seconds: float = 60.0
    timeout_minutes: float = 30.0
    copy_to: str | None = None

    def __post_init__(self) -> None:
        if self.keep_last < 1:
            raise InputError(f"checkpoint.keep_last={self.keep_last}: expected 1 or more.")
        if self.timeout_minutes <= 0:
            raise InputError(
                f"checkpoint.timeout_minutes={self.timeout_minutes}: expected more than 0."
            )
        for key in (
            *("every_steps", "every_tokens", "every_minutes", "short_lived_every_steps"),
            *("mttf_hours", "keep_every", "keep_best", "wait_seconds"),
        ):
            if getattr(self, key) < 0:
                raise InputError(f"checkpoint.{key}={getattr(self, key)}: expected 0 or more.")
        if any(step < 1 for step in self.keep_steps):
            raise InputError(
                f"checkpoint.keep_steps={self.keep_steps}: expected step numbers of 1 or more."
            )
        if self.copy_to is not None and "://" not in self.copy_to:
            raise InputError(
                f"checkpoint.copy_to={self.copy_to}: expected a URL such as s3://bucket/run."
            )
        if self.interval is not None:
            one_of("checkpoint.interval", self.interval, ("auto",))
            if not self.mttf_hours:
                raise InputError(
                    "checkpoint.interval=auto: requires checkpoint.mttf_hours. Give the mean time "
                    "between failures of the whole job in hours (3700 / nodes on common "
                    "clusters)."
                )


@dataclass
class ProfileConfig:
    """Profiler traces of chosen steps, in `profile/` of the run folder.

    steps: steps to trace, counted from 1; consecutive steps share a file.
    ranks: ranks that are traced, with one file each.
    memory: whether snapshots of CUDA memory are written too.
    """

    steps: list[int] = field(default_factory=list)
    ranks: list[int] = field(default_factory=lambda: [0])
    memory: bool = False

    def __post_init__(self) -> None:
        if any(step < 1 for step in self.steps):
            raise InputError(f"profile.steps={self.steps}: expected step numbers of 1 or more.")


@dataclass
class PretrainConfig:
    """One training run. The same command, run again, continues it.

    run_dir: folder for all files of the run.
    init_from: a Hugging Face folder to start from; null for random weights. Without model=, the run
        uses the model of the folder. Only its model.max_seq_len and the keys of RoPE may be
        changed.
    branch_from: <run>@<step>, the run folder (or the URL of its mirror) and the step of another run
        to start from, with its weights, optimizer states and position in the data. model, optim,
        objective, recipe, seed, precision and data are those of that run unless they are given.
        null for a run that is not a branch.
    precision: fp32; bf16 with float32 master weights and reductions; or bf16 with the blocks'
        matrix products in fp8 (fp8: one scale per matrix, fp8_rowwise: one per row). auto takes
        bf16 if the hardware of all processes supports it, else fp32. A resumed run keeps its
        precision.
    deterministic: whether GPU kernels with a fixed order of additions are used, so that a step that
        is repeated has the same bits. They are slower. CPU runs always have the same bits.
    objective: name and options of the loss to minimize. Validation measures the cross-entropy.
    allow_change: keys or groups of the config that may differ from the last start, such as optim.
    gc_every_steps: interval in steps of Python's garbage collection on all ranks; 0 leaves the time
        of collections to Python.
    forecast: folder of a study of the kind ladder, or its forecast.json; the report compares the
        loss with it.
    report: whether a finished run writes report.html, as python -m eval report does.
    stop_after: step after which the run ends with a checkpoint, as if interrupted; null for the
        last step. The learning-rate schedule remains that of the whole plan.
    """

    name: str = MISSING
    run_dir: str = MISSING
    seed: int = 0
    device: str = "auto"
    precision: str = "auto"
    init_from: str | None = None
    branch_from: str | None = None
    forecast: str | None = None
    deterministic: bool = False
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
    ema: EmaConfig = field(default_factory=EmaConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    profile: ProfileConfig = field(default_factory=ProfileConfig)
    health: HealthConfig = field(default_factory=HealthConfig)
    logger: LoggerConfig = MISSING

    def __post_init__(self) -> None:
        one_of("device", self.device, ("auto", "cpu", "cuda"))
        one_of("precision", self.precision, PRECISION_CHOICES)
        if self.branch_from and self.init_from:
            raise InputError(
                f"init_from={self.init_from}: a branch starts from the weights of "
                f"branch_from={self.branch_from}. Remove one of the two keys."
            )
        if self.recipe.inherited and not self.branch_from:
            raise InputError(
                f"recipe.inherited={self.recipe.inherited}: only a branch has stages of another "
                "run. Remove the key, or give branch_from."
            )

    def precision_of(self, stage: ScheduledStage) -> str:
        """Returns the precision of a stage, which is the run's unless the stage sets its own."""
        return training_config(stage).precision or self.precision


def device_of(device: str, available: str) -> str:
    """Returns the device that a run uses, cpu or cuda.

    Args:
        device: The config's choice: cpu, cuda or auto.
        available: cuda if there are GPUs, else cpu.

    Raises:
        InputError: A GPU is requested and there is none.
    """
    if device == "cuda" and available != "cuda":
        raise InputError("device=cuda: torch finds no CUDA device. Use device=cpu or device=auto.")
    return available if device == "auto" else device
