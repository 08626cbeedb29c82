"""From a config to everything that a run needs, with every check before anything is written."""

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
from model.families import family_named
from model.families.folder import HFWeights, read_config
from model.init import initial_value
from model.network import build_meta
from pretrain.attention_choice import choose_attention
from pretrain.checkpoints import find, read
from pretrain.checks import Job, check_layout, check_resume, check_run, sample_order
from pretrain.config import PretrainConfig
from pretrain.hardware import environment
from pretrain.health.changes import changed_software, check_changes
from pretrain.loader import Loader
from pretrain.model_choice import check_initial
from pretrain.optim import build_optimizer, with_all_options
from pretrain.parallel import fill, parallelize
from pretrain.parallel.fp8 import fp8_linears
from pretrain.parallel.mesh import make_layout
from pretrain.planning.auto import settle_parallel
from pretrain.precision_choice import settle_precision
from pretrain.processes import Processes
from pretrain.run import Run

CORPUS = "corpus"
"""Folder in the run folder with the manifest and the tokenizer of the corpus."""
CHECKED_TOKENS = 2**20
"""Token ids of a source looked at before the first step; the rest are when they are read."""


def prepare(config: PretrainConfig, processes: Processes) -> Run:
    """Checks the config against the data, the layout and the run folder, then builds the run.

    Raises InputError before anything is written.
    """
    manifest = open_corpus(config.data.folder)
    plan = StagePlan(config.recipe, manifest.source_tokens("train"))
    precision_reason = settle_precision(config, processes)
    # What is asked for is checked, then what is `auto` becomes something that fits.
    check_run(config, plan, manifest, Job(processes.world_size, processes.device.type))
    config.optim = with_all_options(config.optim)
    why = settle_parallel(config, plan, processes)
    sizes = check_layout(config.parallel, config.model, processes.world_size)
    order = sample_order(config, plan, manifest)
    # The files' sizes are the same for all processes of a machine: one compares them.
    first_here = os.environ.get("LOCAL_RANK", "0") == "0"
    reader = BatchReader(manifest, order, cache_bytes=config.data.cache_bytes, check=first_here)
    reader.check_ids(CHECKED_TOKENS)
    checkpoints = Path(config.run_dir) / "checkpoints"
    found = find.newest_agreed(checkpoints, processes, config.checkpoint.copy_to)
    initial = InitialWeights(config) if found is None else None
    if initial is not None:
        why += initial.changes
    if found is not None:
        check_resume(found[0], found[1], config, manifest, plan, order)
        for key, (before, now) in check_changes(config).items():
            why.append(f"changed since the last start: {key} was {before}, now {now}")

    dp_size = sizes[0] * sizes[1]
    layout = make_layout(sizes, processes.device)
    attention = choose_attention(config, plan, reader, layout, processes)
    model = build_meta(config.model, attention[plan.stages[0].seq_len].backend)
    parallelize(model, layout, config.parallel, config.precision)
    if initial is not None:
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
        chosen: dict[str, Any] = {
            "precision": config.precision,
            "precision_reason": precision_reason,
            "fp8_linears": fp8_linears(model),
            "layout": why,
            "blank_share": blank_share(plan, dp_size, config.parallel.micro_batch_tokens),
        }
        chosen["attention"] = {length: asdict(timing) for length, timing in attention.items()}
        write_run_folder(config, processes, manifest, order, chosen)
    loader = Loader(
        reader,
        plan,
        layout.dp.get_local_rank(),
        dp_size,
        config.parallel.micro_batch_tokens,
        [layer.window for layer in config.model.layers],
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
    """Step 0 of a run: fresh values, or those of a Hugging Face folder. changes: what the run
    changes of that folder's model, in sentences."""

    def __init__(self, config: PretrainConfig) -> None:
        self.config = config
        self.weights: HFWeights | None = None
        self.changes: list[str] = []
        if config.init_from:
            folder = Path(config.init_from)
            self.changes = check_initial(read_config(folder), config.model, str(folder))
            self.weights = HFWeights(folder, family_named(config.model.architecture))

    def value(self, name: str, shape: torch.Size) -> torch.Tensor:
        """The whole value of a parameter."""
        if self.weights is None:
            return initial_value(name, shape, self.config.model, self.config.seed)
        return self.weights.read(name)


def write_run_folder(
    config: PretrainConfig,
    processes: Processes,
    manifest: Manifest,
    order: SampleOrder,
    chosen: dict[str, Any],
) -> None:
    """Writes `config.yaml`, `env.json`, `order.json`, and what an export needs of the corpus, which
    may lie elsewhere by then. chosen: what the setup found out."""
    folder = Path(config.run_dir)
    (folder / "logs").mkdir(parents=True, exist_ok=True)
    write_text(folder / "config.yaml", OmegaConf.to_yaml(OmegaConf.structured(config)))
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
    write_text(folder / "env.json", json.dumps(about, indent=1))
    write_text(folder / "order.json", order.to_json())
    tokenizer = manifest.tokenizer_path.read_text()
    write_text(folder / CORPUS / manifest.tokenizer["file"], tokenizer)
    write_text(folder / CORPUS / FILE, manifest.to_json())
