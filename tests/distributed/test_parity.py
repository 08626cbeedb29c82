"""Acceptance of the layouts: 20 steps of each against one process, to the parameters."""

from __future__ import annotations

from functools import cache
from math import prod
from typing import Any

import pytest
import torch

from pretrain.checkpoints import read
from pretrain.config import MESH
from tests.runs import arguments, ledger, records

SETTINGS: dict[str, Any] = {
    "model__num_heads": 8,
    "model__num_kv_heads": 4,
    "model__head_dim": 8,
    "model__max_seq_len": 512,
    "model__sliding_window": 64,
    "recipe__global_batch_tokens": 4096,
    "recipe__stages__short__seq_len": 512,
    "recipe__stages__short__tokens": 40960,
    "recipe__stages__long__seq_len": 512,
    "recipe__stages__long__tokens": 40960,
    "parallel__micro_batch_tokens": 1024,
    "optim__learning_rate": 0.003,
    "validation__every_steps": 0,
    "checkpoint__every_steps": 0,
}
"""Sequences of 512 with documents of a few hundred tokens in them, a window of 64."""

LAYOUTS = {
    "fsdp2": {"dp_shard": 2},
    "hsdp2x2": {"dp_replicate": 2, "dp_shard": 2},
    "fsdp2_reduced": {"dp_shard": 2, "sharded_accumulation": True},
    "hsdp2x2_reduced": {
        "dp_replicate": 2,
        "dp_shard": 2,
        "micro_batch_tokens": 512,
        "sharded_accumulation": True,
    },
    "tp2": {"tp": 2},
    "tp4": {"tp": 4},
    "fsdp2_tp2": {"dp_shard": 2, "tp": 2},
    "hsdp2x2_tp2": {"dp_replicate": 2, "dp_shard": 2, "tp": 2},
    "cp2": {"cp": 2},
    "cp4": {"cp": 4},
    "cp2_fsdp2": {"cp": 2, "dp_shard": 2},
    "cp2_tp2": {"cp": 2, "tp": 2},
    "hsdp2x2_cp2": {"dp_replicate": 2, "dp_shard": 2, "cp": 2},
    "fsdp2_muon": {"dp_shard": 2},
    "hsdp2x2_muon": {"dp_replicate": 2, "dp_shard": 2},
    "tp2_muon": {"tp": 2},
    "fsdp2_tp2_muon": {"dp_shard": 2, "tp": 2},
    "cp2_muon": {"cp": 2},
    "cp4_full": {"cp": 4},
    "cp2_tp2_full": {"cp": 2, "tp": 2},
    "cp2_tp2_qwen3": {"cp": 2, "tp": 2},
    "cp2_tp2_olmo2": {"cp": 2, "tp": 2},
    "cp2_tp2_gemma3": {"cp": 2, "tp": 2},
    "cp4_gemma3": {"cp": 4},
    "cp2_tp2_gated": {"cp": 2, "tp": 2},
    "cp2_tp2_completep": {"cp": 2, "tp": 2},
    "cp2_wide": {"cp": 2},
    "cp4_wide": {"cp": 4},
}
KINDS: dict[str, dict[str, Any]] = {
    "": {},
    "full": {"model__sliding_window": None},
    "muon": {"optim__name": "muon"},
    "qwen3": {
        "model__architecture": "qwen3",
        "model__qk_norm": "true",
        "model__window_pattern": "LG",
    },
    "olmo2": {
        "model__architecture": "olmo2",
        "model__sliding_window": None,
        "model__norm_order": "after",
        "model__qk_norm": "true",
        "model__qk_norm_width": "projection",
    },
    # A window over more than two pieces of a sequence, next to full attention and alone.
    "gemma3": {
        "model__architecture": "gemma3_text",
        "model__sliding_window": 150,
        "model__window_pattern": "LG",
        "model__norm_order": "both",
        "model__zero_centered_norms": "true",
        "model__qk_norm": "true",
        "model__query_pre_attn_scalar": 12,
        "model__activation": "gelu_tanh",
        "model__scale_embeddings": "true",
        "model__logit_softcap": 5.0,
        "model__rope_theta": 1e6,
        "model__local_rope_theta": 1e4,
        "model__tie_embeddings": "true",
    },
    "gated": {
        "model__architecture": "lfm3",
        "model__sliding_window": None,
        "model__norm_order": "both",
        "model__qk_norm": "true",
        "model__head_gates": "true",
    },
    "completep": {
        "model__parametrization": "completep",
        "model__base_hidden_size": 24,
        "model__base_num_layers": 3,
        "model__base_head_dim": 6,
        "optim__name": "muon",
    },
    "wide": {"model__sliding_window": 270},
}


def kind_of(name):
    return next((kind for kind in KINDS if kind and name.endswith(kind)), "")


def run(warm, corpus, folder, kind, **layout):
    changes = {f"parallel__{name}": size for name, size in layout.items()}
    settings = SETTINGS | KINDS[kind] | changes
    processes = prod(layout.get(name, 1) for name in MESH)
    ended = warm.run(arguments(corpus.folder, folder / "run", **settings), processes, folder)
    assert set(ended.codes) == {0}, ended.said
    return folder / "run"


@pytest.fixture(scope="module")
def single_of(warm, corpus, tmp_path_factory):
    """The run of one process of a kind, made when it is first asked for."""
    folder = tmp_path_factory.mktemp("single")
    return cache(lambda kind: run(warm, corpus, folder / f"one_{kind}", kind, dp_shard=1))


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.check] * (name == "fsdp2")) for name in LAYOUTS],
)
def test_a_layout_takes_the_steps_of_one_process(name, single_of, warm, corpus, tmp_path):
    kind = kind_of(name)
    single = single_of(kind)
    found = run(warm, corpus, tmp_path, kind, **LAYOUTS[name])
    assert ledger(found) == ledger(single)
    ours, theirs = records(found), records(single)
    assert len(ours) == len(theirs) == 20
    assert [r["consumed_tokens"] for r in ours] == [r["consumed_tokens"] for r in theirs]
    worst = {
        key: max(abs(a[key] / b[key] - 1) for a, b in zip(ours, theirs, strict=True))
        for key in ("loss", "grad_norm")
    }
    worst["source_loss"] = max(
        abs(a["source_loss"][source] / loss - 1)
        for a, b in zip(ours, theirs, strict=True)
        for source, loss in b["source_loss"].items()
    )
    for a, b in zip(records(found, "validation"), records(single, "validation"), strict=True):
        worst["validation"] = max(worst.get("validation", 0), abs(a["loss"] / b["loss"] - 1))
    worst["parameters"] = distance(found, single)
    print(f"{name}: largest relative differences {worst}")
    assert max(worst.values()) < 1e-4


@torch.no_grad()
def distance(run_dir, other):
    """Largest distance of a parameter to the other's, relative to its norm."""
    weights = [dict(read.weights(path / "checkpoints" / "step_20")) for path in (run_dir, other)]
    assert weights[0].keys() == weights[1].keys()
    return max(
        (torch.dist(value, weights[1][name]) / weights[1][name].norm()).item()
        for name, value in weights[0].items()
    )


@pytest.mark.parametrize("kind", ["full", "muon", "qwen3", "olmo2", "gemma3", "gated", "wide"])
def test_the_window_and_the_optimizer_matter(kind, single_of):
    losses = [[r["loss"] for r in records(single_of(k))] for k in ("", kind)]
    assert max(abs(a / b - 1) for a, b in zip(*losses, strict=True)) > 1e-3
