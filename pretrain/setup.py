"""Builds a run from its config; `prepare` lists the steps in order."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from conf.files import write_text
from data_pipeline.sampling.batches import BatchReader
from data_pipeline.sampling.dealing import blank_share
from data_pipeline.sampling.order import SampleOrder
from data_pipeline.sampling.recipe import StagePlan
from data_pipeline.store.corpus import open_corpus
from data_pipeline.store.manifest import FILE, Manifest
from model.network import Decoder, build_meta
from model.parametrization import parametrization_of
from pretrain.attention_choice import attention_key, choose_attention
from pretrain.branches import trunk as branch
from pretrain.checkpoints import find
from pretrain.checks import Job, check_layout, check_run, sample_order
from pretrain.config import PretrainConfig
from pretrain.determinism import set_determinism
from pretrain.editions import Editions, settle_editions
from pretrain.forecast import read_forecast
from pretrain.hardware import compute_dtype, environment
from pretrain.health.changes import changed_software, check_changes
from pretrain.initial_state import InitialState
from pretrain.loader import Loader
from pretrain.objectives import Objective, Setting, build_objective, taught
from pretrain.optim import build_optimizer, with_all_options
from pretrain.origin import check_same_tokenizer, inherit_origin, keep_origin
from pretrain.parallel import parallelize
from pretrain.parallel.fp8 import fp8_linears
from pretrain.parallel.mesh import Layout, make_layout
from pretrain.planning.auto import settle_parallel
from pretrain.precision_choice import settle_precision
from pretrain.processes import Processes
from pretrain.resume_checks import check_resume, check_same_teacher
from pretrain.run import Run

CORPUS = "corpus"
"""Subfolder of the run folder for the manifest and the tokenizer of the corpus."""
CHECKED_TOKENS = 2**20
"""Token ids per source to check before the first step. The others are checked when read."""


def prepare(config: PretrainConfig, processes: Processes) -> Run:
    """Checks a config against the data, the processes and the run folder, and builds the run.

    Raises InputError before anything is written.
    """
    set_determinism(config.deterministic, processes.device.type)
    corpus = open_corpus(config.data.folder)
    plan, editions = settle_editions(config, corpus, processes)
    manifest, newest = (corpus.at_edition(plan.stages[n].edition) for n in (0, -1))
    settled = settle(config, plan, manifest, processes) | {"editions": editions}
    order = sample_order(config, plan)
    reader = open_reader(config, newest, order)

    checkpoints = Path(config.run_dir) / "checkpoints"
    state = InitialState.find(config, checkpoints, processes)
    settled["layout"] += check_state(state, config, corpus, editions, plan, order)

    mesh_sizes = check_layout(config.parallel, config.model, processes.world_size)
    layout = make_layout(mesh_sizes, processes.device)
    attention = choose_attention(config, plan, reader, layout, processes, state.metadata)
    backend = attention[attention_key(plan.own_stages[0])].backend
    model, optimizer = build_model(config, layout, backend, state, processes.device)

    objective = build_objective(config.objective)
    if (lesson := taught(objective)) is not None:
        data = [record["data"] for record in editions]
        device = processes.device
        lesson.prepare(Setting(config, newest, plan, order, layout, device, state.step, data))
        if not state.at_fork:
            check_same_teacher(state.metadata, lesson.identity, config)
        settled["teacher"] = lesson.identity

    find.prepare_folder(checkpoints, processes)
    if processes.is_main:
        if state.parents:
            settled["parents"] = state.parents
        if state.trunk is not None:
            branch.record(state.trunk, Path(config.run_dir))
            inherit_origin(Path(config.run_dir), state.trunk.run)
        settled["fp8_linears"] = fp8_linears(model)
        settled["attention"] = {key: asdict(timing) for key, timing in attention.items()}
        write_run_folder(config, processes, newest, order, settled)
        if config.init_from and state.weights is not None:
            keep_origin(Path(config.run_dir), config.init_from)
    return Run(
        manifest=manifest,
        plan=plan,
        order=order,
        layout=layout,
        model=model,
        optimizer=optimizer,
        loader=build_loader(config, reader, plan, layout, processes.device, objective),
        checkpoints=checkpoints,
        step=state.step,
        checkpoint=state.checkpoint,
        metadata=state.metadata,
        documents=state.documents(order.sources),
        attention=attention,
        editions=editions,
        trunk=state.trunk,
        at_fork=state.at_fork,
        objective=objective,
    )


def settle(
    config: PretrainConfig, plan: StagePlan, manifest: Manifest, processes: Processes
) -> dict[str, Any]:
    """Runs all checks, and replaces every `auto` in the config with a value.

    Returns the decisions and their reasons, for `env.json`.
    """
    precision_reason = settle_precision(config, processes)
    check_run(config, plan, manifest, Job(processes.world_size, processes.device.type))
    config.optim = with_all_options(config.optim)
    reasons = settle_parallel(config, plan, processes)
    replicate, shard, _, _ = check_layout(config.parallel, config.model, processes.world_size)
    return {
        "precision": config.precision,
        "precision_reason": precision_reason,
        "layout": reasons,
        "blank_share": blank_share(plan, replicate * shard, config.parallel.micro_batch_tokens),
    } | ({"forecast": read_forecast(config.forecast)} if config.forecast else {})


def open_reader(config: PretrainConfig, manifest: Manifest, order: SampleOrder) -> BatchReader:
    """Opens the shards. Raises InputError if their sizes or first token ids are wrong."""
    # All processes of a machine see the same files, so one of them compares the sizes.
    is_first_here = os.environ.get("LOCAL_RANK", "0") == "0"
    reader = BatchReader(manifest, order, cache_bytes=config.data.cache_bytes, check=is_first_here)
    reader.check_ids(CHECKED_TOKENS)
    return reader


def check_state(
    state: InitialState,
    config: PretrainConfig,
    corpus: Manifest,
    editions: Editions,
    plan: StagePlan,
    order: SampleOrder,
) -> list[str]:
    """Returns one sentence per key that differs from the model of `init_from` or the last start.

    Raises InputError for a change that is impossible, or that `allow_change` does not name.
    """
    if state.weights is not None:
        if config.init_from:
            check_same_tokenizer(config.init_from, corpus)
        return state.weights.changes
    assert state.checkpoint is not None
    about = branch.comparable(state.metadata, config) if state.at_fork else state.metadata
    check_resume(state.checkpoint, about, config, corpus, editions, plan, order)
    return [
        f"changed since the last start: {key} was {before}, now {now}"
        for key, (before, now) in check_changes(config).items()
    ]


def build_model(
    config: PretrainConfig,
    layout: Layout,
    attention: str,
    state: InitialState,
    device: torch.device,
) -> tuple[Decoder, torch.optim.Optimizer]:
    """Builds the sharded model and its optimizer, and loads the state into both."""
    model = build_meta(config.model, attention)
    parallelize(model, layout, config.parallel, config.precision)
    state.materialize(model, device)
    optimizer = build_optimizer(
        model, config.optim, compute_dtype(config.precision), parametrization_of(config.model)
    )
    state.load(model, optimizer)
    return model, optimizer


def build_loader(
    config: PretrainConfig,
    reader: BatchReader,
    plan: StagePlan,
    layout: Layout,
    device: torch.device,
    objective: Objective,
) -> Loader:
    """Builds the loader that reads this rank's share of each batch."""
    lesson = taught(objective)
    network = lesson.network if lesson is not None else None
    return Loader(
        reader,
        plan,
        layout.dp.get_local_rank(),
        layout.dp.size(),
        config.parallel.micro_batch_tokens,
        [layer.window for layer in config.model.layers],
        device,
        config.data.prefetch_steps,
        [layer.window for layer in network.layers] if network is not None else [],
        None if lesson is None else lesson.attach,
    )


def write_run_folder(
    config: PretrainConfig,
    processes: Processes,
    manifest: Manifest,
    order: SampleOrder,
    settled: dict[str, Any],
) -> None:
    """Writes `config.yaml`, `env.json`, `order.json`, and the corpus files that an export needs.

    An export uses these copies because the corpus itself may have moved.

    manifest: the newest edition of the corpus that a stage reads.
    settled: the decisions that `settle` returns, and the `editions` of all stages.
    """
    for sentence in settled["layout"]:
        print(sentence, flush=True)
    folder = Path(config.run_dir)
    (folder / "logs").mkdir(parents=True, exist_ok=True)
    write_text(folder / "config.yaml", OmegaConf.to_yaml(OmegaConf.structured(config)))
    about = (
        environment(processes.device, processes.world_size)
        | settled
        | {
            "data": str(config.data.folder),
            "data_fingerprint": settled["editions"][0]["data"],
            "tokenizer_fingerprint": manifest.tokenizer["sha256"],
            "order_fingerprint": order.fingerprint,
        }
    )
    for name, (before, now) in changed_software(folder, about).items():
        print(f"warning: {name} was {before} at the last start, now {now}.", flush=True)
    write_text(folder / "env.json", json.dumps(about, indent=1))
    write_text(folder / "order.json", order.to_json())
    tokenizer = manifest.tokenizer_path.read_text()
    write_text(folder / CORPUS / manifest.tokenizer["file"], tokenizer)
    write_text(folder / CORPUS / FILE, manifest.to_json())
