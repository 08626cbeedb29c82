"""From a config to everything that a run needs, with every check before anything is written."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from conf.errors import InputError
from data_pipeline.sampling.batches import BatchReader
from data_pipeline.sampling.order import SampleOrder
from data_pipeline.sampling.recipe import StagePlan
from data_pipeline.store.manifest import Manifest, load_manifest
from model.config import ModelConfig
from model.hf import HFWeights, read_config
from model.init import initial_value
from model.network import Decoder, build_meta
from pretrain.async_tensor_parallel import check_async_tensor_parallel
from pretrain.attention_choice import Timing, choose_attention
from pretrain.auto_layout import pick_layout
from pretrain.checkpoints import find, read
from pretrain.config import PretrainConfig
from pretrain.distributed import Layout, Processes, check_layout, make_layout
from pretrain.fp8 import fp8_linears
from pretrain.hardware import environment
from pretrain.health.changes import changed_software, check_changes
from pretrain.hooks.precision import check_precision
from pretrain.hooks.profile import check_profile
from pretrain.loader import Loader, check_batches
from pretrain.optimizer import build_optimizer
from pretrain.parallel import fill, parallelize

CHECKED_TOKENS = 2**20
"""Token ids of a source looked at before the first step; the rest are when they are read."""


@dataclass
class Run:
    """What `Trainer` runs. documents: of each source that were trained on to their end.
    attention: the backend for each sequence length."""

    manifest: Manifest
    plan: StagePlan
    order: SampleOrder
    layout: Layout
    model: Decoder
    optimizer: torch.optim.Optimizer
    loader: Loader
    checkpoints: Path
    step: int
    documents: dict[str, int]
    attention: dict[int, Timing]


def prepare(config: PretrainConfig, processes: Processes) -> Run:
    """Checks the config against the data, the layout and the run folder, then builds the run.

    Raises InputError before anything is written.
    """
    manifest = load_manifest(config.data.folder)
    check_vocabulary(manifest, config)
    plan = StagePlan(config.recipe, manifest.source_tokens("train"))
    why = pick_layout(config, plan, processes)
    sizes = check_layout(config.parallel, config.model, processes.world_size)
    dp_size, tp = sizes[0] * sizes[1], sizes[3]
    check_batches(plan, config.parallel, dp_size, config.model.max_seq_len)
    check_async_tensor_parallel(config.parallel, processes.device)
    check_precision(config, plan, tp, sizes[2], processes.device)
    check_profile(config.profile, processes)
    check_held_out(manifest, plan)
    check_packing(manifest, plan)
    order = SampleOrder(
        manifest.source_tokens("train"),
        [stage.order_stage() for stage in plan.stages],
        config.seed,
        config.data.max_epochs,
        config.recipe.atom_tokens,
    )
    # The files' sizes are the same for all processes of a machine: one compares them.
    first_here = os.environ.get("LOCAL_RANK", "0") == "0"
    reader = BatchReader(manifest, order, cache_bytes=config.data.cache_bytes, check=first_here)
    reader.check_ids(CHECKED_TOKENS)
    initial = InitialWeights(config)
    checkpoints = Path(config.run_dir) / "checkpoints"
    found = find.newest_agreed(checkpoints, processes, config.checkpoint.copy_to)
    if found is not None:
        check_resume(found[0], found[1], config, manifest, plan, order)
        for key, (before, now) in check_changes(config).items():
            why.append(f"changed since the last start: {key} was {before}, now {now}")

    layout = make_layout(sizes, processes.device)
    attention = choose_attention(config, plan, reader, layout, processes)
    model = build_meta(config.model, attention[plan.stages[0].seq_len].backend)
    parallelize(model, layout, config.parallel, config.precision)
    if found is None:
        fill(model, processes.device, initial.value)
    else:
        model.to_empty(device=processes.device)
        model.tie()
    optimizer = build_optimizer(model, config.optim)
    step = 0
    if found is not None:
        read.load(found[0], model, optimizer)
        step = found[1]["step"]
    find.prepare_folder(checkpoints, processes)
    if processes.is_main:
        print(*why, sep="\n", end="\n" if why else "", flush=True)
        chosen: dict[str, Any] = {"fp8_linears": fp8_linears(model), "layout": why}
        chosen["attention"] = {length: asdict(timing) for length, timing in attention.items()}
        write_run_folder(config, processes, manifest, order, chosen)
    loader = Loader(
        reader,
        plan,
        layout.dp.get_local_rank(),
        dp_size,
        config.parallel.micro_batch_tokens,
        config.model.sliding_window,
        processes.device,
        config.data.prefetch_steps,
    )
    past = found[1]["position"]["sources"] if found is not None else {}
    documents = {source: past.get(source, {}).get("documents", 0) for source in order.sources}
    return Run(
        manifest,
        plan,
        order,
        layout,
        model,
        optimizer,
        loader,
        checkpoints,
        step,
        documents,
        attention,
    )


class InitialWeights:
    """Step 0 of a run: fresh values, or those of a Hugging Face folder."""

    def __init__(self, config: PretrainConfig) -> None:
        self.config = config
        self.weights: HFWeights | None = None
        if config.init_from:
            folder = Path(config.init_from)
            check_same_model(asdict(read_config(folder)), config.model, str(folder))
            self.weights = HFWeights(folder)

    def value(self, name: str, shape: torch.Size) -> torch.Tensor:
        """The whole value of a parameter."""
        if self.weights is None:
            return initial_value(name, shape, self.config.model, self.config.seed)
        return self.weights.read(name)


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
    for key, expected in asdict(model).items():
        if key not in ("name", "init", "initializer_range") and found.get(key) != expected:
            raise InputError(
                f"model.{key}={expected}, but {where} was made with {found.get(key)}: use the "
                "same model, or another run_dir."
            )


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
    same = about["order"] == order.fingerprint or order.same_past(was, stage, samples)
    if is_there and same:
        return
    advice = "seed or recipe changed; restore them, or use another run_dir."
    name, tokens = about["position"]["name"], was.stages[stage].samples * was.stages[stage].seq_len
    if samples * was.stages[stage].seq_len < tokens:
        planned = was.stages[stage].planned or was.stages[stage].samples
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


def write_run_folder(
    config: PretrainConfig,
    processes: Processes,
    manifest: Manifest,
    order: SampleOrder,
    chosen: dict[str, Any],
) -> None:
    """Writes `config.yaml`, `env.json` and `order.json`. chosen: what the setup found out."""
    folder = Path(config.run_dir)
    (folder / "logs").mkdir(parents=True, exist_ok=True)
    OmegaConf.save(OmegaConf.structured(config), folder / "config.yaml")
    about = (
        environment(processes.device, processes.world_size)
        | chosen
        | {
            "data": str(config.data.folder),
            "data_fingerprint": manifest.fingerprint,
            "tokenizer_fingerprint": manifest.tokenizer["sha256"],
            "order_fingerprint": order.fingerprint,
        }
    )
    for name, (before, now) in changed_software(folder, about).items():
        print(f"warning: {name} was {before} at the last start, now {now}.", flush=True)
    (folder / "env.json").write_text(json.dumps(about, indent=1))
    (folder / "order.json").write_text(order.to_json())
