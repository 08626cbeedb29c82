"""Checks a run before it starts. The functions have no side effects, and may raise InputError.

They need the config, the plan, the manifest of the data and a description of the processes (`Job`).
`pretrain.setup` describes the processes in which it runs, and `launch` those that a job will have.
`check_run` lists all checks of a new run; those of a checkpoint are in `pretrain.resume_checks`.
"""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import dataclass
from pathlib import Path

import yaml

from conf.errors import InputError, one_of
from conf.wandb_run import LoggerConfig
from data_pipeline.sampling.dealing import micro_batch_sizes
from data_pipeline.sampling.fim import check_fim
from data_pipeline.sampling.order import SampleOrder
from data_pipeline.sampling.recipe import StagePlan
from data_pipeline.store.manifest import Manifest
from model.config import ModelConfig
from pretrain.averages.config import check_ema
from pretrain.config import (
    AUTO,
    MESH,
    PRECISIONS,
    EvaluationConfig,
    ParallelConfig,
    PretrainConfig,
    ProfileConfig,
    ValidationConfig,
)
from pretrain.determinism import check_deterministic
from pretrain.fp8_checks import check_fp8_device, check_fp8_package, check_fp8_sides
from pretrain.optim import check_optimizer
from pretrain.recipe import training_config
from pretrain.stage_network import network_of

RUN_KEYS = ("model", "data", "recipe", "optim", "parallel")
"""Groups of keys in the config.yaml of every run."""


@dataclass(frozen=True)
class Job:
    """A description of the processes that a run has or will have.

    Attributes:
        world_size: Number of processes.
        device: cpu or cuda.
        here: True if the run uses the devices of this machine, so that they can be checked.
        packages: True if the run uses the Python packages installed on this machine.
        ranks_per_node: Number of processes per machine, for `parallel=auto`.
        memory_bytes: Memory per process, for `parallel=auto`.
    """

    world_size: int
    device: str
    here: bool = True
    packages: bool = True
    ranks_per_node: int = 1
    memory_bytes: int = sys.maxsize


def check_run(
    config: PretrainConfig, plan: StagePlan, manifest: Manifest | None, job: Job
) -> tuple[int, int, int, int]:
    """Runs all checks of a new run, and returns the sizes of the mesh in the order of MESH.

    Args:
        config: The run.
        plan: The stages of the run.
        manifest: Manifest of the data; None skips the checks of the data, if it does not exist yet.
        job: The processes of the run.
    """
    if manifest is not None:
        check_vocabulary(manifest, config)
        check_fim({stage.name: stage.fim for stage in plan.own_stages}, manifest)
    sizes = check_layout(config.parallel, config.model, job.world_size)
    check_stages(plan, config.parallel, config.model.max_seq_len, manifest)
    check_networks(config.model, plan)
    check_validation(config.validation, plan, manifest)
    check_attention(config.parallel.attention, config.precision, job)
    check_deterministic(config, job.device)
    check_async_tensor_parallel(config.parallel, job)
    check_cuda_graphs(config.parallel, job)
    check_objective(config, plan, manifest)
    check_ema(config.ema, plan.total_steps)
    check_logger(config.logger)
    check_precision(config, plan, sizes[0] * sizes[1], job)
    check_parameters(config)
    check_profile(config.profile, job)
    return sizes


def check_run_folder(run_dir: Path) -> None:
    """Raises InputError if the folder holds a config.yaml that is not the config of a run."""
    path = run_dir / "config.yaml"
    if not path.exists():
        return
    try:
        content = yaml.safe_load(path.read_bytes())
    except (OSError, yaml.YAMLError):
        content = None
    if not isinstance(content, dict) or not all(
        isinstance(content.get(key), dict) for key in RUN_KEYS
    ):
        raise InputError(
            f"run_dir={run_dir}: the config.yaml of this folder does not describe a pretraining "
            "run. Choose another folder."
        )


def check_parameters(config: PretrainConfig) -> None:
    """Raises InputError if the optimizer cannot handle the parameters of the model."""
    from model.network import build_meta  # imports torch

    parameters = build_meta(config.model).named_parameters()
    check_optimizer(config.optim, {name: parameter.ndim for name, parameter in parameters})


def sample_order(config: PretrainConfig, plan: StagePlan) -> SampleOrder:
    """Returns the order of samples of a run. Raises InputError if the corpus is too small."""
    return SampleOrder(
        plan.source_tokens,
        plan.stages,
        config.seed,
        config.data.max_epochs,
        config.recipe.atom_tokens,
    )


def check_layout(
    config: ParallelConfig, model: ModelConfig, world_size: int
) -> tuple[int, int, int, int]:
    """Returns the sizes of the mesh, in the order of MESH.

    Raises InputError if they do not fit the model or the number of processes.
    """
    sizes = {name: getattr(config, name) for name in MESH}
    for key, size in sizes.items():
        if size < 1 and not (key == "dp_shard" and size == -1):
            raise InputError(f"parallel.{key}={size}: expected 1 or more.")
    others = config.dp_replicate * config.cp * config.tp
    shard = max(1, world_size // others) if config.dp_shard == -1 else config.dp_shard
    if others * shard != world_size:
        product = " x ".join(f"{name}={size}" for name, size in sizes.items())
        raise InputError(
            f"parallel: {product} does not match the number of processes, {world_size}. Change one "
            "of these sizes."
        )
    tp = config.tp
    for key, size in (
        ("num_heads", model.num_heads),
        ("num_kv_heads", model.num_kv_heads),
        ("intermediate_size", model.intermediate_size),
        ("vocab_size", model.vocab_size),
    ):
        if size % tp:
            raise InputError(
                f"model.{key}={size}: expected a multiple of parallel.tp={tp}, because every "
                "tensor-parallel rank has an equal part. Change one of them."
            )
    return config.dp_replicate, shard, config.cp, tp


def sequence_parts(cp: int, tp: int) -> int:
    """Returns the number of equal parts into which cp and tp must be able to split a sequence."""
    return tp if cp == 1 else 2 * cp * tp


def check_stages(
    plan: StagePlan, parallel: ParallelConfig, max_seq_len: int, manifest: Manifest | None = None
) -> None:
    """Raises InputError if the sequences of a stage do not fit the model, the layout or the data.

    `StagePlan` has already checked what follows from the recipe alone, and `check_precision` checks
    what depends on the hardware.

    Args:
        plan: The stages.
        parallel: The layout.
        max_seq_len: Number of positions of the model.
        manifest: Manifest of the data; None skips the checks that need it.
    """
    micro_batch_tokens, cp, tp = parallel.micro_batch_tokens, parallel.cp, parallel.tp
    product = f"parallel.tp={tp}" if cp == 1 else f"2 x parallel.cp={cp} x parallel.tp={tp}"
    packed = manifest.packed if manifest is not None else []
    held_out = manifest.source_tokens("held_out") if manifest is not None else {}
    for stage in plan.own_stages:
        key = f"recipe.stages.{stage.name}.seq_len={stage.seq_len}"
        if stage.seq_len > max_seq_len:
            raise InputError(
                f"{key}: expected at most model.max_seq_len={max_seq_len}. Use shorter sequences, "
                "or raise model.max_seq_len."
            )
        if stage.seq_len % sequence_parts(cp, tp):
            raise InputError(f"{key}: expected a multiple of {product}. Change one of these keys.")
        if micro_batch_tokens != AUTO and micro_batch_tokens % stage.seq_len:
            raise InputError(
                f"parallel.micro_batch_tokens={micro_batch_tokens}: expected a multiple of {key}. "
                "Change one of them, or use parallel.micro_batch_tokens=auto."
            )
        if packed and stage.seq_len not in packed:
            raise InputError(
                f"{key}: the documents of {manifest and manifest.folder} were packed into "
                f"sequences of {' or '.join(map(str, packed))} tokens. Use one of these lengths, "
                "or tokenize the corpus again with another corpus.fit."
            )
        for source, tokens in held_out.items():
            if tokens <= stage.seq_len:
                raise InputError(
                    f"{key}: the held-out split of source '{source}' has {tokens} tokens, too few "
                    "for one sequence. Use shorter sequences, or tokenize the corpus again with a "
                    "larger corpus.held_out_fraction."
                )


def check_networks(model: ModelConfig, plan: StagePlan) -> None:
    """Raises InputError if the network of a stage is invalid, so that it could not be exported."""
    for stage in plan.stages:
        try:
            network_of(model, stage)
        except InputError as error:
            raise InputError(f"recipe.stages.{stage.name}: {error}") from None


def check_validation(
    validation: ValidationConfig, plan: StagePlan, manifest: Manifest | None
) -> None:
    """Raises InputError if a validation would not hold one sequence of a stage.

    A branch also validates in the stage of its trunk at the fork.
    """
    if manifest is None or not manifest.source_tokens("held_out"):
        return
    fork = max(0, len(plan.stages) - len(plan.own_stages) - 1)
    longest = max(plan.stages[fork:], key=lambda stage: stage.seq_len)
    if validation.tokens < longest.seq_len:
        raise InputError(
            f"validation.tokens={validation.tokens}: expected {longest.seq_len} or more, the "
            f"length of one sequence of stage '{longest.name}'."
        )


def check_attention(name: str, precision: str, job: Job) -> None:
    """Raises InputError if an attention backend is unknown or cannot run in the job."""
    if name == "auto":
        return
    import torch

    from model.attention.backends import check_backend, check_backend_name
    from pretrain.hardware import compute_dtype

    check_backend_name(name)
    if job.here or job.device == "cpu":
        check_backend(name, torch.device(job.device), compute_dtype(precision))


def check_cuda_graphs(config: ParallelConfig, job: Job) -> None:
    """Raises InputError if micro-batches are to be CUDA graphs, but cannot be captured."""
    if not config.cuda_graphs:
        return
    key, remedy = "parallel.cuda_graphs=true", "Remove parallel.cuda_graphs."
    if job.device != "cuda":
        raise InputError(f"{key}: requires a GPU, but the run is on {job.device}. {remedy}")
    if job.world_size > 1:
        raise InputError(
            f"{key}: requires a single process, but the run has {job.world_size}. FSDP2 waits for "
            f"messages of the micro-batch before, which a graph cannot contain. {remedy}"
        )
    if config.sharded_accumulation is False:
        raise InputError(
            f"{key}: requires gradients that are reduced in every micro-batch. Remove "
            "parallel.sharded_accumulation=false."
        )


def check_async_tensor_parallel(config: ParallelConfig, job: Job) -> None:
    """Raises InputError if asynchronous tensor parallelism is requested but cannot be used."""
    if not config.async_tp:
        return
    key = "parallel.async_tp=true"
    if config.tp == 1:
        raise InputError(
            f"{key}: requires tensor parallelism, but parallel.tp=1. Set parallel.tp to 2 or more, "
            "or remove parallel.async_tp."
        )
    if not config.compile:
        raise InputError(
            f"{key}: requires torch.compile. Add parallel.compile=true, or remove "
            "parallel.async_tp."
        )
    if job.device != "cuda":
        raise InputError(
            f"{key}: requires GPUs, but the run is on {job.device}. Use device=cuda, or remove "
            "parallel.async_tp."
        )
    if job.packages:
        import torch

        if not hasattr(torch._inductor.config, "_micro_pipeline_tp"):
            raise InputError(
                f"{key}: torch {torch.__version__} does not support it. Remove parallel.async_tp."
            )


def check_objective(config: PretrainConfig, plan: StagePlan, manifest: Manifest | None) -> None:
    """Raises InputError if the objective or an option is unknown, or its teacher does not fit.

    Without the manifest of the data, the teacher need not exist either.
    """
    from pretrain.objectives import build_objective, taught

    objective = taught(build_objective(config.objective))
    if objective is not None and manifest is not None:
        objective.check(config, plan, manifest)


def check_logger(config: LoggerConfig) -> None:
    """Raises InputError if a logger is unknown."""
    from pretrain.hooks.loggers import check_loggers

    check_loggers(config)


def check_precision(config: PretrainConfig, plan: StagePlan, dp_size: int, job: Job) -> None:
    """Raises InputError if a stage's precision does not fit the job or the precision of the run.

    Args:
        config: The run.
        plan: The stages of the run.
        dp_size: Number of data-parallel ranks.
        job: The processes of the run.
    """
    parallel = config.parallel
    micro_batches: dict[int, list[int | None]] = {}
    if parallel.micro_batch_tokens != AUTO:
        sizes = micro_batch_sizes(plan, dp_size, parallel.micro_batch_tokens)
        for level, size in sizes.items():
            micro_batches.setdefault(level.stage, []).append(size)
    for stage in plan.own_stages:
        precision, own = config.precision_of(stage), training_config(stage).precision
        key = f"recipe.stages.{stage.name}.precision"
        if own is not None:
            one_of(key, own, PRECISIONS)
        # `auto` is resolved on the machine that trains.
        if config.precision != "auto" and (precision == "fp32") != (config.precision == "fp32"):
            raise InputError(
                f"{key}={precision}: a stage cannot switch between fp32 and another precision, but "
                f"the run has precision={config.precision}. Change one of them."
            )
        if precision.startswith("fp8"):
            if job.packages:
                check_fp8_package(precision)
            if job.here and job.device == "cuda":
                check_fp8_device(precision)
            for micro in micro_batches.get(stage.index, [None]):
                check_fp8_sides(precision, config.model, parallel.tp, parallel.cp, micro)
            if parallel.compile is False and job.device == "cuda":
                raise InputError(
                    f"parallel.compile=false with precision={precision}: uncompiled casts to fp8 "
                    "take more time than fp8 matrix products save. Remove parallel.compile, or "
                    "use precision=bf16."
                )


def check_profile(config: ProfileConfig, job: Job) -> None:
    """Raises InputError if the run cannot record the requested profile."""
    if config.memory and job.device != "cuda":
        raise InputError(
            f"profile.memory=true: requires CUDA, but the run is on {job.device}. Remove "
            "profile.memory."
        )
    if config.memory and job.packages:
        import torch

        if not hasattr(torch.cuda.memory, "_record_memory_history"):
            raise InputError(
                f"profile.memory=true: not supported by torch {torch.__version__}. Remove "
                "profile.memory."
            )
    for rank in config.ranks:
        if not 0 <= rank < job.world_size:
            raise InputError(
                f"profile.ranks={config.ranks}: the run has no rank {rank}. Use ranks from 0 to "
                f"{job.world_size - 1}."
            )


def check_tasks_package(config: EvaluationConfig) -> None:
    """Raises InputError if the config names tasks to score and lm-eval is missing."""
    if config.tasks and importlib.util.find_spec("lm_eval") is None:
        raise InputError(
            f"evaluation.tasks={config.tasks}: requires the package lm_eval, which is not "
            'installed. Run pip install -c constraints.txt -e ".[eval]", or remove '
            "evaluation.tasks."
        )


def check_vocabulary(manifest: Manifest, config: PretrainConfig) -> None:
    """Raises InputError if the vocabulary of the data is larger than the model's embedding."""
    manifest.check_tokenizer()
    if manifest.vocab_size > config.model.vocab_size:
        remedy = "Raise model.vocab_size, or tokenize the corpus with a smaller tokenizer."
        if config.init_from:
            remedy = f"Tokenize the corpus with tokenizer=load tokenizer.path={config.init_from}."
        raise InputError(
            f"model.vocab_size={config.model.vocab_size}: expected {manifest.vocab_size} or more, "
            f"the vocabulary size of {config.data.folder}. {remedy}"
        )
