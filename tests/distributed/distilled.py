"""Gradients of distillation in several layouts against plain torch on whole logits.

`python -m tests.distributed.distilled OUT NAME...` runs layouts of `test_parity` on this torchrun.
"""

from __future__ import annotations

import json
import sys
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.distributed.tensor import DTensor

from data_pipeline.sampling.batches import IGNORED, Batch
from model.config import ModelConfig
from model.init import initial_value
from model.network import Decoder, build_meta
from pretrain.checks import check_layout
from pretrain.config import ParallelConfig
from pretrain.objectives.distill.objective import Distill
from pretrain.parallel import materialize, parallelize
from pretrain.parallel.mesh import make_layout
from pretrain.processes import start
from tests.distributed.test_parity import KINDS, LAYOUTS, SETTINGS, kind_of
from tests.model.shapes import initialize, tiny
from tests.model.test_soft_targets import plain

ROWS, SEQ, IDS = 4, 512, 250
"""A batch, and the number of ids of the tokenizer, less than the 256 of both networks."""
OPTIONS: dict[str, Any] = {
    "top_k": 8,
    "weight": 0.7,
    "cross_entropy_weight": 0.4,
    "temperature": 2.0,
    "z_loss": 0.01,
}
TEACHER = tiny(
    architecture="qwen2",
    qkv_bias=True,
    vocab_size=256,
    hidden_size=48,
    num_layers=2,
    num_heads=4,
    num_kv_heads=4,
    max_seq_len=SEQ,
    sliding_window=None,
)
"""Full attention, also next to students that have windows only."""


def student_of(kind: str) -> ModelConfig:
    """Returns the model that `test_parity` trains in the layouts of a kind."""
    settings = SETTINGS | KINDS[kind]
    shape = {k.removeprefix("model__"): v for k, v in settings.items() if k[:7] == "model__"}
    shape = {key: value == "true" if value == "true" else value for key, value in shape.items()}
    return tiny(**{"vocab_size": 256, "hidden_size": 64, "num_layers": 2} | shape)


def whole_batch() -> Batch:
    """Returns samples with documents of some hundred tokens, and masked labels."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, IDS, (ROWS, SEQ), generator=generator)
    labels = tokens.roll(-1, 1)
    labels[:, ::5] = IGNORED
    starts = [row * SEQ + start for row in range(ROWS) for start in (0, 100 + row, 300)]
    cu_seqlens = torch.tensor([*starts, ROWS * SEQ], dtype=torch.int32)
    return Batch(tokens, labels, cu_seqlens, np.arange(ROWS))


def part_of(batch: Batch, rank: int, size: int) -> Batch:
    """Returns the samples of a data-parallel rank."""
    rows = ROWS // size
    starts = batch.cu_seqlens - rank * rows * SEQ
    inside = starts[(starts >= 0) & (starts <= rows * SEQ)]
    part = slice(rank * rows, (rank + 1) * rows)
    return Batch(batch.tokens[part], batch.labels[part], inside, np.arange(rows))


def unsharded(config: ModelConfig, seed: int) -> Decoder:
    """Returns the network of one process."""
    model = Decoder(config)
    initialize(model, config, seed)
    return model


@cache
def expected(kind: str) -> tuple[dict[str, float], dict[str, Tensor]]:
    """Returns the sums and gradients of plain torch, which holds the logits of both networks."""
    batch, model = whole_batch(), unsharded(student_of(kind), 0)
    with torch.no_grad():
        taught = unsharded(TEACHER, 1)(batch.tokens, cu_seqlens=batch.cu_seqlens)
    log_p = taught.flatten(0, 1).log_softmax(1)
    scores, ids = log_p[:, :IDS].topk(OPTIONS["top_k"])
    rest = (1 - scores.double().exp().sum(1)).log().float()
    logits = model(batch.tokens, cu_seqlens=batch.cu_seqlens).flatten(0, 1)
    labels = batch.labels.flatten()
    counted = labels != IGNORED
    entropy = F.cross_entropy(logits, labels, reduction="sum", ignore_index=IGNORED)
    divergence, agreement = plain(logits, (ids, scores, rest), OPTIONS["temperature"])
    divergence, agreement = (divergence * counted).sum(), (agreement * counted).sum()
    z_loss = OPTIONS["z_loss"] * (logits.logsumexp(1).square() * counted).sum()
    weights = OPTIONS["cross_entropy_weight"], OPTIONS["weight"]
    loss = weights[0] * entropy + weights[1] * divergence + z_loss
    loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    sums = {"loss": loss, "entropy": entropy, "z_loss": z_loss}
    sums |= {"kl": divergence, "agreement": agreement}
    return {key: float(value.detach()) for key, value in sums.items()}, gradients


def compared(name: str, device: torch.device) -> dict[str, float]:
    """Returns the largest relative difference of the sums and of the gradients in a layout."""
    settings: dict[str, Any] = {"dp_shard": 1} | LAYOUTS[name]
    student, parallel = student_of(kind_of(name)), ParallelConfig(**settings)
    layout = make_layout(check_layout(parallel, student, dist.get_world_size()), device)
    model = build_meta(student)
    parallelize(model, layout, parallel, "fp32")
    materialize(model, device, lambda name, size: initial_value(name, size, student, 0))
    objective = Distill(teacher="the teacher of the test", **OPTIONS)
    source: Any = SimpleNamespace(
        network=TEACHER,
        identity=dict,
        read=lambda name: initial_value(name, SHAPES[name], TEACHER, 1),
    )
    objective.source = source
    config = SimpleNamespace(model=student, parallel=parallel, precision="fp32")
    manifest = SimpleNamespace(vocab_size=IDS)
    setting: Any = SimpleNamespace(config=config, manifest=manifest, layout=layout, device=device)
    objective.prepare(setting)
    batch = part_of(whole_batch(), layout.dp.get_local_rank(), layout.dp.size())
    loss, by_sample, metrics = objective(model, batch)
    (loss * layout.data.size()).backward()  # FSDP averages
    sums = torch.stack((loss.detach(), by_sample.sum(), *metrics))
    dist.all_reduce(sums, group=layout.dp.get_group())
    found = {}
    for key, parameter in model.named_parameters():
        assert isinstance(parameter.grad, DTensor)
        found[key] = parameter.grad.full_tensor()
    if dist.get_rank() > 0:
        return {}
    wanted, gradients = expected(kind_of(name))
    pairs = zip(sums.tolist(), wanted.items(), strict=True)
    worst = {key: abs(value / other - 1) for value, (key, other) in pairs}
    distances = [torch.dist(found[key], g) / g.norm() for key, g in gradients.items()]
    return worst | {"gradients": float(max(distances))}


SHAPES = {name: p.shape for name, p in build_meta(TEACHER).named_parameters()}


def main(out: str, *names: str) -> None:
    processes = start("cpu")
    results = {name: compared(name, processes.device) for name in names}
    if processes.is_main:
        Path(out).write_text(json.dumps(results))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
