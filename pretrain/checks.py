"""What `pretrain` refuses before it trains, as pure functions: a config, what the manifest of the
data states and the processes of a run in; nothing, or InputError, out.

`pretrain.setup` calls them on the processes that are there, `launch` on those that a job will have.
Nothing here needs torch, or a device that the run is not on.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from conf.errors import InputError, one_of
from conf.wandb_run import LoggerConfig
from data_pipeline.sampling.dealing import micro_batch_sizes
from data_pipeline.sampling.order import SampleOrder
from data_pipeline.sampling.recipe import StagePlan
from data_pipeline.store.manifest import Manifest
from model.config import ModelConfig
from pretrain.config import (
    AUTO,
    MESH,
    PRECISIONS,
    EvaluationConfig,
    ParallelConfig,
    PretrainConfig,
    ProfileConfig,
)
from pretrain.optim import check_optimizer
from pretrain.recipe import training_config
from pretrain.stage_network import network_after, network_of_checkpoint

FP8_MULTIPLE = 16
"""What `torch._scaled_mm` asks of the sides of its matrices."""
FP8_CAPABILITY = (8, 9)
"""Compute capability of the first NVIDIA GPUs that multiply fp8 (Ada)."""


@dataclass(frozen=True)
class Job:
    """The processes that a run has, or will have.

    device: cpu or cuda. here: whether the run uses this machine's devices, and packages: whether it
    uses this machine's packages; what it does not use is not looked at.
    node: processes of one machine. memory: bytes that each of them can have. `parallel=auto` needs
    both.
    """

    world_size: int
    device: str
    here: bool = True
    packages: bool = True
    node: int = 1
    memory: int = sys.maxsize


def device_of(device: str, offered: str) -> str:
    """Returns the device that a run uses, cpu or cuda. offered: cuda where torch sees GPUs, or
    will; else cpu. Raises InputError where GPUs are asked for and there are none."""
    if device == "cuda" and offered != "cuda":
        raise InputError("device=cuda, but there is no CUDA device: use device=cpu or auto.")
    return offered if device == "auto" else device


def check_run(
    config: PretrainConfig, plan: StagePlan, manifest: Manifest | None, job: Job
) -> tuple[int, int, int, int]:
    """Runs all checks of a new run and returns the sizes of the mesh, in the order of MESH. Raises
    InputError.

    manifest: of the data, or None where the data is not there yet: the checks that need it are left
    out.
    """
    if manifest is not None:
        check_vocabulary(manifest, config)
    sizes = check_layout(config.parallel, config.model, job.world_size)
    check_batches(plan, config.parallel, config.model.max_seq_len)
    check_attention(config.parallel.attention, config.precision, job)
    check_async_tensor_parallel(config.parallel, job)
    check_objective(config.objective)
    check_logger(config.logger)
    check_precision(config, plan, sizes[0] * sizes[1], job)
    check_parameters(config)
    check_profile(config.profile, job)
    if manifest is not None:
        check_held_out(manifest, plan)
        check_packing(manifest, plan)
    return sizes


def check_parameters(config: PretrainConfig) -> None:
    """Raises InputError where the optimizer does not fit the parameters of the model."""
    from model.network import build_meta  # torch, when it is needed

    parameters = build_meta(config.model).named_parameters()
    check_optimizer(config.optim, {name: parameter.ndim for name, parameter in parameters})


def sample_order(config: PretrainConfig, plan: StagePlan, manifest: Manifest) -> SampleOrder:
    """Returns the order of samples of a run. Raises InputError where the plan needs more text than
    there is."""
    return SampleOrder(
        manifest.source_tokens("train"),
        plan.stages,
        config.seed,
        config.data.max_epochs,
        config.recipe.atom_tokens,
    )


def check_layout(
    config: ParallelConfig, model: ModelConfig, world_size: int
) -> tuple[int, int, int, int]:
    """Sizes of the mesh, in the order of MESH; raises InputError where they do not fit."""
    sizes = {name: getattr(config, name) for name in MESH}
    for key, size in sizes.items():
        if size < 1 and not (key == "dp_shard" and size == -1):
            raise InputError(f"parallel.{key}={size}, expected 1 or more.")
    others = config.dp_replicate * config.cp * config.tp
    shard = max(1, world_size // others) if config.dp_shard == -1 else config.dp_shard
    if others * shard != world_size:
        product = " x ".join(f"{name}={size}" for name, size in sizes.items())
        raise InputError(
            f"parallel.{product} does not make {world_size}, the number of processes: change one "
            "of them."
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
                f"model.{key}={size} is not divisible by parallel.tp={tp}: every tensor-parallel "
                "rank takes an equal part."
            )
    return config.dp_replicate, shard, config.cp, tp


def check_batches(plan: StagePlan, parallel: ParallelConfig, longest: int) -> None:
    """Raises InputError where a stage's sequences cannot be split, or packed into micro-batches.

    longest: positions that the model has.
    """
    micro_batch_tokens = parallel.micro_batch_tokens
    cp, tp = parallel.cp, parallel.tp
    pieces = tp if cp == 1 else 2 * cp * tp
    product = f"parallel.tp={tp}" if cp == 1 else f"2 x parallel.cp={cp} x parallel.tp={tp}"
    for stage in plan.stages:
        key = f"recipe.stages.{stage.name}.seq_len={stage.seq_len}"
        if stage.seq_len > longest:
            raise InputError(f"{key} is above model.max_seq_len={longest}.")
        if stage.seq_len % pieces:
            raise InputError(f"{key} is not divisible by {product}.")
        if micro_batch_tokens != AUTO and micro_batch_tokens % stage.seq_len:
            raise InputError(
                f"parallel.micro_batch_tokens={micro_batch_tokens} is not a multiple of {key}."
            )


def check_attention(name: str, precision: str, job: Job) -> None:
    """Raises InputError where an attention backend is not known, or cannot run in the job."""
    if name == "auto":
        return
    import torch

    from model.attention.backends import check_backend, check_backend_name
    from pretrain.hardware import compute_dtype

    check_backend_name(name)
    if job.here or job.device == "cpu":
        check_backend(name, torch.device(job.device), compute_dtype(precision))


def check_async_tensor_parallel(config: ParallelConfig, job: Job) -> None:
    """Raises InputError where asynchronous tensor parallelism is asked for and cannot be."""
    if not config.async_tp:
        return
    key = "parallel.async_tp=true"
    if config.tp == 1:
        raise InputError(f"{key}, but parallel.tp=1: give parallel.tp of 2 or more, or drop it.")
    if not config.compile:
        raise InputError(f"{key} is made by the compiler: add parallel.compile=true.")
    if job.device != "cuda":
        raise InputError(f"{key} needs GPUs that reach each other's memory, found {job.device}.")
    if job.packages:
        import torch

        if not hasattr(torch._inductor.config, "_micro_pipeline_tp"):
            raise InputError(f"{key} is not offered by torch {torch.__version__}: drop it.")


def check_objective(objective: dict[str, Any]) -> None:
    """Raises InputError where the objective or one of its options is not known."""
    from pretrain.objectives import build_objective

    build_objective(objective)


def check_logger(config: LoggerConfig) -> None:
    """Raises InputError where a logger is not known."""
    from pretrain.hooks.loggers import check_loggers

    check_loggers(config)


def check_precision(config: PretrainConfig, plan: StagePlan, dp_size: int, job: Job) -> None:
    """Raises InputError where a stage's precision cannot run in the job, or follow the run's.

    dp_size: data-parallel ranks.
    """
    parallel = config.parallel
    micro_batches: dict[int, list[int | None]] = {}
    if parallel.micro_batch_tokens != AUTO:
        sizes = micro_batch_sizes(plan, dp_size, parallel.micro_batch_tokens)
        for level, size in sizes.items():
            micro_batches.setdefault(level.stage, []).append(size)
    for stage in plan.stages:
        precision, own = config.precision_of(stage), training_config(stage).precision
        key = f"recipe.stages.{stage.name}.precision"
        if own is not None:
            one_of(key, own, PRECISIONS)
        # What `auto` becomes is known on the machine that trains.
        if config.precision != "auto" and (precision == "fp32") != (config.precision == "fp32"):
            raise InputError(
                f"{key}={precision}, but precision={config.precision}: a stage can change "
                "between bf16, fp8 and fp8_rowwise only."
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
                    "cost more than its products save. Drop parallel.compile, or take "
                    "precision=bf16."
                )


def check_fp8_package(precision: str) -> None:
    """Raises InputError where the package for fp8 is missing."""
    if importlib.util.find_spec("torchao") is None:
        raise InputError(
            f"precision={precision} needs the package torchao, which is not installed: "
            "pip install -c constraints.txt torchao, or take precision=bf16."
        )


def check_fp8_device(precision: str) -> None:
    """Raises InputError where this machine's GPU does not multiply fp8. A CPU emulates it."""
    import torch

    found = torch.cuda.get_device_capability()
    if torch.version.hip is None and found < FP8_CAPABILITY:
        raise InputError(
            f"precision={precision}, but {torch.cuda.get_device_name()} has compute "
            f"capability {found[0]}.{found[1]}, expected {FP8_CAPABILITY[0]}."
            f"{FP8_CAPABILITY[1]} or more: take precision=bf16."
        )


def check_fp8_sides(
    precision: str, model: ModelConfig, tp: int, cp: int, micro_batch_tokens: int | None
) -> None:
    """Raises InputError where a side of the matrices that fp8 multiplies is not a multiple of 16 on
    each of `tp` and `cp` ranks.

    micro_batch_tokens: the inner side of weight gradients, None where it is not known yet.
    """
    for key, size, split, parts in (
        ("model.hidden_size", model.hidden_size, "tp", 1),
        ("model.num_heads * head_dim", model.query_size, "tp", tp),
        ("model.num_kv_heads * head_dim", model.kv_size, "tp", tp),
        ("model.intermediate_size", model.intermediate_size, "tp", tp),
        ("tokens of a micro-batch", micro_batch_tokens, "cp", cp),
    ):
        if size is not None and size % (FP8_MULTIPLE * parts):
            ranks = f" on each of parallel.{split}={parts} ranks" if parts > 1 else ""
            raise InputError(
                f"precision={precision}, but {key}={size} is not a multiple of {FP8_MULTIPLE}"
                f"{ranks}: change it, or take precision=bf16."
            )


def check_profile(config: ProfileConfig, job: Job) -> None:
    """Raises InputError where something is asked for that the run cannot write."""
    if config.memory and job.device != "cuda":
        raise InputError(
            f"profile.memory=true, but the run is on {job.device}: snapshots of memory "
            "exist on CUDA only, drop profile.memory."
        )
    for rank in config.ranks:
        if not 0 <= rank < job.world_size:
            raise InputError(
                f"profile.ranks names rank {rank}, expected 0 to {job.world_size - 1}."
            )


def check_tasks_package(config: EvaluationConfig) -> None:
    """Raises InputError where tasks are to be scored and lm-eval is missing."""
    if config.tasks and importlib.util.find_spec("lm_eval") is None:
        raise InputError(
            f"evaluation.tasks={config.tasks} needs the package lm_eval, which is not installed: "
            'pip install -c constraints.txt -e ".[eval]", or drop evaluation.tasks.'
        )


def check_vocabulary(manifest: Manifest, config: PretrainConfig) -> None:
    """Raises InputError where the data's ids do not fit the model's embedding."""
    manifest.check_tokenizer()
    if manifest.vocab_size > config.model.vocab_size:
        raise InputError(
            f"{config.data.folder} has a vocabulary of {manifest.vocab_size}, larger than "
            f"model.vocab_size={config.model.vocab_size}: take a larger model.vocab_size or "
            "tokenize with a smaller tokenizer."
        )


def check_packing(manifest: Manifest, plan: StagePlan) -> None:
    """Raises InputError where documents were fitted into sequences of other lengths."""
    for stage in plan.stages:
        if manifest.packed and stage.seq_len not in manifest.packed:
            raise InputError(
                f"recipe.stages.{stage.name}.seq_len={stage.seq_len}, but {manifest.folder} was "
                f"fitted into sequences of {' or '.join(map(str, manifest.packed))}: take one of "
                "them, or tokenize with another corpus.fit."
            )


def check_held_out(manifest: Manifest, plan: StagePlan) -> None:
    """Raises InputError where a source has too little held-out text to validate on."""
    longest = max(stage.seq_len for stage in plan.stages)
    for source, tokens in manifest.source_tokens("held_out").items():
        if tokens <= longest:
            raise InputError(
                f"the held-out split of source '{source}' has {tokens} tokens, fewer than one "
                f"sequence of {longest}: hold a larger fraction of the corpus out."
            )


def check_same_model(found: dict[str, object], model: ModelConfig, where: str) -> None:
    """Raises InputError where the shape in `where` is not the config's."""
    # A checkpoint from before a key existed has the model that the key's default describes.
    known = {field.name: field.default for field in fields(model)} | found
    for key, expected in asdict(model).items():
        if key not in ("name", "init", "initializer_range") and known[key] != expected:
            raise InputError(
                f"model.{key}={expected}, but {where} was made with {known[key]}: use the "
                "same model, or another run_dir."
            )


def check_same_network(
    about: dict[str, Any], model: ModelConfig, plan: StagePlan, where: str
) -> None:
    """Raises InputError where the stage that a checkpoint ends in has another network now."""
    stage, now = plan.at(max(0, about["step"] - 1)), network_after(model, plan, about["step"])
    was = network_of_checkpoint(about, model, plan)
    if was.rope_theta != now.rope_theta:
        raise InputError(
            f"recipe.stages.{stage.name}.rope_theta={now.rope_theta:g}, but {where} was trained "
            f"with {was.rope_theta:g}. Restore it, and change it in a stage that is still to come."
        )


def _more(plan: StagePlan, name: str, tokens: int) -> str:
    """How many tokens more a stage is to have now than it had, `N` where that is not so."""
    now = next((s.samples * s.seq_len for s in plan.stages if s.name == name), 0)
    return str(now - tokens) if now > tokens else "N"


def check_resume(
    path: Path,
    about: dict[str, Any],
    config: PretrainConfig,
    data: Manifest,
    plan: StagePlan,
    order: SampleOrder,
) -> None:
    """Raises InputError where a run cannot go on from a checkpoint as it is configured now.

    What is still to come may change; what was trained on may not.
    """
    check_same_model(about["model"], config.model, str(path))
    if about["data"] != data.fingerprint:
        raise InputError(
            f"{path} was trained on other data ({about['data'][:12]}, now "
            f"{data.fingerprint[:12]} in {config.data.folder}): restore it, or use another run_dir."
        )
    was = SampleOrder.from_json(json.dumps(about["plan"]))
    stage, samples = about["position"]["stage"], about["position"]["samples"]
    step = about["step"]
    is_there = step <= plan.total_steps and plan.position(step) == (stage, samples)
    same = about["order"] == order.fingerprint or order.has_same_history(was, stage, samples)
    if is_there and same:
        check_same_network(about, config.model, plan, str(path))
        return
    name, tokens = about["position"]["name"], was.stages[stage].samples * was.stages[stage].seq_len
    seq_len = was.stages[stage].seq_len
    stage_more = f"{{seq_len:{seq_len},tokens:{_more(plan, name, tokens)}}}"
    advice = (
        "seed or recipe changed; restore them, or use another run_dir. To train for longer, leave "
        f"recipe.stages.{name}.tokens={tokens} and add '+recipe.stages.more={stage_more}'."
    )
    if samples * seq_len < tokens:
        planned = was.stages[stage].planned_samples or was.stages[stage].samples
        advice = (
            f"seed or recipe changed; restore them, use another run_dir, or end stage '{name}' "
            f"here with recipe.stages.{name}.tokens={samples * was.stages[stage].seq_len} "
            f"recipe.stages.{name}.planned_tokens={planned * was.stages[stage].seq_len} and say "
            "in a stage after it what is to change."
        )
    what = f"on another order of samples ({about['order'][:12]}, now {order.fingerprint[:12]})"
    if same:
        what = f"in other batches: its {step} steps took {samples} samples of stage '{name}'"
    raise InputError(f"{path} was trained {what}: {advice}")
