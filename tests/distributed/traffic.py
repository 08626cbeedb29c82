"""Counts the bytes that a training step sends, for several layouts of this torchrun's processes.

`python -m tests.distributed.traffic OUT`
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode

from model.config import ModelConfig
from model.init import initial_value
from model.network import build_meta
from pretrain.checks import check_layout
from pretrain.config import OptimConfig, ParallelConfig
from pretrain.optim import build_optimizer
from pretrain.optim.clip import scale_and_clip
from pretrain.parallel import accumulate_gradients, materialize, parallelize
from pretrain.parallel.mesh import Layout, make_layout
from pretrain.processes import start
from tests.model.shapes import tiny

MODEL = tiny(
    hidden_size=64,
    intermediate_size=96,
    num_heads=4,
    num_kv_heads=4,
    head_dim=16,
    vocab_size=256,
    sliding_window=17,
)
QWEN3: dict[str, Any] = {"architecture": "qwen3", "qk_norm": True}
OLMO2: dict[str, Any] = {
    "architecture": "olmo2",
    "sliding_window": None,
    "norm_order": "after",
    "qk_norm": True,
    "qk_norm_width": "projection",
}
QWEN2: dict[str, Any] = {"architecture": "qwen2", "qkv_bias": True}
LAYOUTS: dict[str, dict[str, Any]] = {
    "shard 4": {"dp_shard": 4},
    "shard 4, kept after forward": {"dp_shard": 4, "reshard_after_forward": False},
    "replicate 4": {"dp_replicate": 4, "dp_shard": 1},
    "replicate 2 x shard 2": {"dp_replicate": 2, "dp_shard": 2},
    "shard 4, reduced often": {"dp_shard": 4, "sharded_accumulation": True},
    "replicate 2 x shard 2, reduced often": {
        "dp_replicate": 2,
        "dp_shard": 2,
        "sharded_accumulation": True,
    },
    "tp 4": {"dp_shard": 1, "tp": 4},
    "tp 4, qk norm": {"dp_shard": 1, "tp": 4, **QWEN3},
    "tp 4, norm over all heads": {"dp_shard": 1, "tp": 4, **OLMO2},
    "tp 4, biases": {"dp_shard": 1, "tp": 4, **QWEN2},
    "shard 2 x tp 2": {"dp_shard": 2, "tp": 2},
    "cp 4": {"dp_shard": 1, "cp": 4},
    "cp 4, whole attention": {"dp_shard": 1, "cp": 4, "sliding_window": None},
    "shard 2 x cp 2": {"dp_shard": 2, "cp": 2},
    "cp 2 x tp 2": {"dp_shard": 1, "cp": 2, "tp": 2},
    "cp 4, mixed windows": {"dp_shard": 1, "cp": 4, **QWEN3, "window_pattern": "LG"},
}
SEQ, BATCH, MICRO_BATCHES = 64, 4, 2
"""BATCH: sequences of a micro-batch of each data-parallel rank."""
SENT = {
    "c10d._allgather_base_": ("all_gather", 0),
    "c10d._reduce_scatter_base_": ("reduce_scatter", 1),
    "c10d.allreduce_": ("all_reduce", 0),
    "c10d.alltoall_base_": ("all_to_all", 1),
    "_c10d_functional.all_gather_into_tensor": ("all_gather", None),
    "_c10d_functional.reduce_scatter_tensor": ("reduce_scatter", 0),
    "_c10d_functional.all_reduce": ("all_reduce", 0),
    "_c10d_functional.all_reduce_": ("all_reduce", 0),
    "_c10d_functional.all_to_all_single": ("all_to_all", 0),
}
"""Kind of each operator, and which argument holds the whole payload; None: what it returns."""


class Counted(TorchDispatchMode):
    """Payload bytes by kind of collective.

    Attributes:
        blocking: Number of calls for which the host waits at once.
    """

    def __init__(self) -> None:
        super().__init__()
        self.bytes: Counter[str] = Counter()
        self.calls: Counter[str] = Counter()
        self.blocking: Counter[str] = Counter()
        self.unknown: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(issubclass(kind, DTensor) for kind in types):
            return NotImplemented  # its parts' operators come here one by one
        out = func(*args, **(kwargs or {}))
        name = str(func).removesuffix(".default")
        if name in SENT:
            kind, which = SENT[name]
            payload = out if which is None else args[which]
            tensors = payload if isinstance(payload, list) else [payload]
            self.bytes[kind] += sum(t.numel() * t.element_size() for t in tensors)
            self.calls[kind] += 1
            self.blocking[kind] += any(given is False for given in args)  # `asyncOp`
        elif "c10d" in name and not name.endswith(("wait_tensor", "_wrap_tensor_autograd")):
            self.unknown.add(name)
        return out


def case(name: str) -> tuple[ModelConfig, ParallelConfig]:
    """The model and layout of a name in LAYOUTS."""
    sizes = dict(LAYOUTS[name])
    shape = {key: sizes.pop(key) for key in list(sizes) if hasattr(MODEL, key)}
    model = replace(MODEL, **shape)
    return model, ParallelConfig(micro_batch_tokens=BATCH * SEQ, **sizes)


def counted(layout: Layout, shape: ModelConfig, config: ParallelConfig) -> dict[str, Any]:
    """Counts the communication of one optimizer step."""
    model = build_meta(shape)
    parallelize(model, layout, config, "bf16")
    materialize(model, torch.device("cpu"), lambda name, size: initial_value(name, size, shape, 0))
    optimizer = build_optimizer(model, OptimConfig(learning_rate=1e-3))
    tokens = torch.randint(0, 256, (BATCH, SEQ), generator=torch.Generator().manual_seed(0))
    for _ in range(2):  # the first one also makes what later ones find
        with Counted() as found:
            for index in range(MICRO_BATCHES):
                is_last = index + 1 == MICRO_BATCHES
                accumulate_gradients(model, config, is_last)  # type: ignore[arg-type]
                loss: torch.Tensor = model(tokens, tokens.roll(-1, 1))
                loss.backward()
        with Counted() as after:
            scale_and_clip(model.parameters(), torch.tensor(1.0), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
    assert not found.unknown | after.unknown, found.unknown | after.unknown
    return {
        "bytes": found.bytes,
        "calls": found.calls,
        "blocking": found.blocking,
        "optimizer_calls": after.calls,
    }


def main(out: str) -> None:
    processes = start("cpu")
    results: dict[str, Any] = {}
    for name in LAYOUTS:
        model, config = case(name)
        layout = make_layout(check_layout(config, model, processes.world_size), processes.device)
        of_ranks: list[Any] = [None] * processes.world_size
        dist.all_gather_object(of_ranks, counted(layout, model, config))
        results[name] = of_ranks
    if processes.is_main:
        Path(out).write_text(json.dumps(results))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
