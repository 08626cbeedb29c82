"""The plan of memory against what is really there."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from conf.text import GIB
from model.config import ModelConfig
from model.network import Decoder
from pretrain.checks import check_layout
from pretrain.config import OptimConfig, ParallelConfig
from pretrain.parallel.activation_checkpointing import MODES, apply_activation_checkpointing
from pretrain.planning.fake_ranks import fake_ranks, state_bytes
from pretrain.planning.layouts import Machine, RunRequirements, candidates
from pretrain.planning.memory import (
    Sizes,
    Work,
    activation_bytes,
    loss_bytes,
    parameter_shapes,
    plan_memory,
)
from tests.model.test_counts import load

BATCH, SEQ = 2, 256
MODEL: dict[str, Any] = {
    "name": "measured",
    "vocab_size": 512,
    "hidden_size": 128,
    "intermediate_size": 344,
    "num_layers": 4,
    "num_heads": 4,
    "num_kv_heads": 2,
    "max_seq_len": 512,
}


class Storages(TorchDispatchMode):
    """Remembers every storage that an operator returns."""

    def __init__(self):
        super().__init__()
        self.seen = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in tree_iter(out):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                self.seen[storage.data_ptr()] = (StorageWeakRef(storage), storage.nbytes())
        return out

    def alive(self, module):
        """Bytes of those that something still holds, without the module's own."""
        own = {parameter.untyped_storage().data_ptr() for parameter in module.parameters()}
        others = [entry for pointer, entry in self.seen.items() if pointer not in own]
        return sum(size for reference, size in others if not reference.expired())


def kept_bytes(config, precision, mode):
    """Bytes that a forward pass leaves behind for backward."""
    torch.manual_seed(0)
    dtype = torch.float32 if precision == "fp32" else torch.bfloat16
    model = Decoder(config).to(dtype)
    apply_activation_checkpointing(model, mode)
    tokens = torch.randint(0, config.vocab_size, (BATCH, SEQ))
    documents = None if config.sliding_window is None else torch.tensor([0, 100, 256, 512, 512])
    with Storages() as storages:
        loss = model(tokens, tokens, documents)
    assert loss.requires_grad
    return storages.alive(model)


QWEN3: dict[str, Any] = {"architecture": "qwen3", "qk_norm": True}
OLMO2: dict[str, Any] = {
    "architecture": "olmo2",
    "norm_order": "after",
    "qk_norm": True,
    "qk_norm_width": "projection",
}
GEMMA3: dict[str, Any] = {
    "architecture": "gemma3_text",
    "norm_order": "both",
    "zero_centered_norms": True,
    "qk_norm": True,
    "activation": "gelu_tanh",
    "scale_embeddings": True,
    "query_pre_attn_scalar": 48.0,
    "logit_softcap": 30.0,
    "tie_embeddings": True,
    "sliding_window": 64,
    "window_pattern": "LG",
    "local_rope_theta": 1e3,
}
QWEN2: dict[str, Any] = {"architecture": "qwen2", "qkv_bias": True}
GATED: dict[str, Any] = {
    "architecture": "lfm3",
    "norm_order": "both",
    "qk_norm": True,
    "head_gates": True,
}
SMOLLM3: dict[str, Any] = {"architecture": "smollm3", "rope_pattern": "RN"}


@pytest.mark.parametrize(
    "features",
    [
        {"sliding_window": None},
        {"sliding_window": 64},
        QWEN3,
        {**QWEN3, "sliding_window": 64, "window_pattern": "LG"},
        OLMO2,
        GEMMA3,
        QWEN2,
        {**SMOLLM3, "sliding_window": None},
        GATED,
    ],
    ids=[
        *("causal", "window", "qk_norm", "window_pattern", "norms after"),
        *("norms before and after", "qkv_bias", "rope_pattern", "head_gates"),
    ],
)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_activations_are_what_autograd_keeps(precision, mode, features):
    config = ModelConfig(**MODEL | features)
    window = config.sliding_window
    work = Work(
        precision,
        BATCH * SEQ,
        SEQ,
        checkpointing=mode,
        dense_mask=window is not None,
        device="cpu",
    )
    planned = activation_bytes(config, Sizes(), work)
    if mode != "none":  # what a block computes again is not there yet
        more = ModelConfig(**MODEL | features | {"num_layers": 5})
        again = Work(precision, BATCH * SEQ, SEQ, dense_mask=window is not None, device="cpu")
        planned -= activation_bytes(more, Sizes(), again) - activation_bytes(config, Sizes(), again)
    size = 4 if precision == "fp32" else 2
    planned += loss_bytes(config, BATCH * SEQ, 1, size)[0]
    assert planned == pytest.approx(kept_bytes(config, precision, mode), rel=0.01)


LAYOUTS: dict[str, dict[str, Any]] = {
    "copies": {"dp_replicate": 8, "dp_shard": 1},
    "fsdp": {},
    "hsdp": {"dp_replicate": 2},
    "tp": {"tp": 2},
    "hsdp and tp": {"dp_replicate": 2, "tp": 2},
    "cp": {"cp": 4},
    "all": {"dp_replicate": 2, "cp": 2, "tp": 2},
}


@pytest.mark.parametrize(
    "features", [{}, {"tie_embeddings": True}, QWEN3, QWEN2, OLMO2, GEMMA3, GATED], ids=str
)
def test_state_is_that_of_the_split_model(features):
    """Odd sizes too: 344 rows do not split evenly over 8 ranks of 2 or 16."""
    config = ModelConfig(**MODEL | features)
    with fake_ranks(8):
        for name, layout in LAYOUTS.items():
            parallel = ParallelConfig(**layout)
            counted = state_bytes(config, parallel, "bf16", OptimConfig(learning_rate=1e-3))
            sizes = Sizes(*check_layout(parallel, config, 8))
            planned = plan_memory(config, parameter_shapes(config), sizes, Work("bf16", 512, 256))
            assert planned.weights == counted.weights, name
            averaged = plan_memory(
                *(config, parameter_shapes(config), sizes, Work("bf16", 512, 256)), averaged=True
            )
            assert averaged.total - planned.total == counted.weights, name
            assert planned.gradients == counted.gradients, name
            # AdamW counts its steps too, in 4 bytes per tensor.
            assert 0 <= counted.optimizer - planned.optimizer <= 4 * 64, name


@pytest.mark.parametrize(
    "model",
    [
        "danube_1_8b",
        pytest.param("danube3_4b", marks=pytest.mark.slow),
        pytest.param("mistral_7b", marks=pytest.mark.slow),
    ],
)
def test_real_models_on_64_ranks(model):
    """Acceptance of the plan: the really split model, on a CPU, with nothing allocated."""
    config = load(model)
    machine = Machine(64, 8, 80 * GIB)
    need = RunRequirements(config, "bf16", "adamw", ParallelConfig(), (2048,))
    found = candidates(need, machine)
    fitting = [option for option in found if option.problem is None]
    assert {"HSDP 8x8", "FSDP 64", "FSDP 8 x TP8"} <= {option.name for option in fitting}
    with fake_ranks(64):
        for option in (fitting[0], next(o for o in fitting if o.parallel.tp > 1)):
            counted = state_bytes(config, option.parallel, "bf16", OptimConfig(learning_rate=1e-3))
            assert option.memory is not None
            assert option.memory.state == pytest.approx(
                counted.weights + counted.gradients + counted.optimizer, rel=1e-3
            )


def test_plain_data_parallel_comes_first_where_it_fits():
    danube = RunRequirements(load("danube_1_8b"), "bf16", "adamw", ParallelConfig(), (16384,))
    names = [option.name for option in candidates(danube, Machine(8, 8, 80 * GIB))]
    assert names[:3] == ["replicate", "FSDP 8", "FSDP 4 x CP2"]
    seven = RunRequirements(load("mistral_7b"), "bf16", "adamw", ParallelConfig(), (8192,))
    last = candidates(seven, Machine(64, 8, 80 * GIB))[-1]
    assert last.name == "replicate"
    assert last.problem is not None
    assert "GiB for micro-batches of 8192 tokens with activation_checkpointing=full" in last.problem


def test_memory_sums_up():
    """Danube on one H100 by hand: 16 bytes per parameter, 2.1 MB per token."""
    config = load("danube_1_8b")
    shapes = parameter_shapes(config)
    planned = plan_memory(config, shapes, Sizes(8), Work("bf16", 16384, 2048))
    assert planned.state == 16 * 1_831_201_280
    kept = 2 * (4 * 2560 + 2 * 2560 + 2 * 640 + 4 * 6912) + 4 * (2 + 32)
    assert planned.activations == pytest.approx(16384 * 24 * kept, rel=0.01)
    accumulated = plan_memory(config, shapes, Sizes(1, 8), Work("bf16", 16384, 2048))
    assert accumulated.unreduced == 4 * 1_831_201_280 * 7 // 8
    assert planned.total == sum(vars(planned).values())
    # Reduced after every micro-batch, gradients need no more than those of a single one.
    reduced = Work("bf16", 16384, 2048, sharded_accumulation=True)
    single = Work("bf16", 16384, 2048, accumulates=False)
    assert len({plan_memory(config, shapes, Sizes(1, 8), work) for work in (reduced, single)}) == 1


def test_the_command_lists_layouts_and_says_why_others_fail(command):
    done = command(
        "pretrain",
        "memory",
        "model=mistral_7b",
        "seq_len=4096",
        "show=1",
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "mistral_7b on 8 x 80 GiB" in done.stdout
    row = next(line for line in done.stdout.splitlines() if "FSDP 8 " in line)
    assert f"{7_241_732_096 * 4 / 8 / GIB:.2f}" in row
    assert "replicate: needs 1" in done.stdout
    assert "also fitting: " in done.stdout


def test_the_command_refuses(command):
    done = command("pretrain", "memory", "seq_len=99999")
    assert done.returncode == 2
    assert "seq_len=99999: expected 1 to 16384" in done.stderr
