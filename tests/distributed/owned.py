"""Compares steps of Muon on sharded matrices with those of one process, for several layouts.

`python -m tests.distributed.owned OUT` runs on the four processes of this torchrun.
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from model.init import initial_value
from model.network import build_meta
from pretrain.checks import check_layout
from pretrain.config import OptimConfig, ParallelConfig
from pretrain.optim import build_optimizer, owners
from pretrain.parallel import materialize, parallelize
from pretrain.parallel.mesh import Layout, make_layout
from pretrain.processes import start
from tests.distributed.traffic import Counted
from tests.model.shapes import tiny

MODEL = tiny(
    hidden_size=64, intermediate_size=102, num_heads=8, num_kv_heads=4, head_dim=8, vocab_size=256
)
"""Neither 102 nor the number of matrices, 14, is a multiple of four."""
LAYOUTS: dict[str, dict[str, Any]] = {
    "shard 4": {"dp_shard": 4},
    "replicate 4": {"dp_replicate": 4, "dp_shard": 1},
    "replicate 2 x shard 2": {"dp_replicate": 2, "dp_shard": 2},
    "shard 2 x tp 2": {"dp_shard": 2, "tp": 2},
    "replicate 2 x tp 2": {"dp_replicate": 2, "dp_shard": 1, "tp": 2},
    "shard 2 x cp 2": {"dp_shard": 2, "cp": 2},
}
DTYPES = {"muon": torch.bfloat16, "normuon": torch.float32}
"""The dtype of the products and messages of each optimizer."""
CASES = [("muon", layout) for layout in LAYOUTS]
CASES += [("normuon", "replicate 2 x shard 2"), ("normuon", "shard 2 x tp 2")]
STEPS = ("good", "bad", "good")
RATE = 0.02


def unsharded() -> nn.Module:
    """Returns the model of one process, without FSDP2."""
    model = build_meta(MODEL)
    model.to_empty(device="cpu")
    for name, parameter in model.named_parameters():
        parameter.data = initial_value(name, parameter.shape, MODEL, 0)
    return model


def made(layout: Layout, config: ParallelConfig) -> nn.Module:
    """Returns the model with the same initial weights in every layout."""
    model = build_meta(MODEL)
    parallelize(model, layout, config, "fp32")
    materialize(model, torch.device("cpu"), lambda name, size: initial_value(name, size, MODEL, 0))
    return model


def stepped(model: nn.Module, name: str, dtype: torch.dtype) -> tuple[dict[str, Tensor], Counted]:
    """Returns the weights and states after STEPS, and the messages of the last step."""
    optimizer = build_optimizer(model, OptimConfig(name=name, learning_rate=RATE), dtype)
    generator = torch.Generator().manual_seed(1)
    for step in STEPS:
        for parameter in model.parameters():
            whole = torch.randn(parameter.shape, generator=generator)
            if step == "bad":
                whole.fill_(math.nan)
            parameter.grad = whole
            if isinstance(parameter, DTensor):
                mesh, placements = parameter.device_mesh, parameter.placements
                parameter.grad = distribute_tensor(whole, mesh, placements, src_data_rank=None)
        optimizer.found_inf = torch.tensor(float(step == "bad"))  # type: ignore[attr-defined]
        with Counted() as counted:
            optimizer.step()
    found: dict[str, Tensor] = dict(model.named_parameters())
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state[parameter].items():
            found[f"{name}, {key}"] = value
    return found, counted


def whole(tensor: Tensor) -> Tensor:
    """Returns the unsharded tensor."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


@torch.no_grad()
def distances(found: dict[str, Tensor], expected: dict[str, Tensor]) -> dict[str, float]:
    """Returns the distance of each tensor to the expected one, relative to its norm."""
    return {
        key: float((whole(found[key]) - value).norm() / value.norm().clamp(min=1e-12))
        for key, value in expected.items()
    }


def compared(layout: Layout, config: ParallelConfig, name: str, expected: Any) -> dict[str, Any]:
    """Returns what the ranks found in one layout, and which messages they sent."""
    found, counted = stepped(made(layout, config), name, DTYPES[name])
    local = [value.to_local() if isinstance(value, DTensor) else value for value in found.values()]
    of_ranks: list[Any] = [None] * dist.get_world_size()
    about = (counted.calls, counted.bytes, counted.blocking, [part.tolist() for part in local])
    dist.all_gather_object(of_ranks, about)
    replica = len(of_ranks) // config.dp_replicate
    return {
        "distances": distances(found, expected),
        "replicas_are_equal": all(
            of_ranks[rank][3] == of_ranks[rank % replica][3] for rank in range(len(of_ranks))
        ),
        **{key: [r[i] for r in of_ranks] for i, key in enumerate(("calls", "bytes", "blocking"))},
    }


def main(out: str) -> None:
    processes = start("cpu")
    owners.ROUND_ELEMENTS = 64 * 64  # several rounds per shape
    results: dict[str, Any] = {}
    expected = {name: stepped(unsharded(), name, dtype)[0] for name, dtype in DTYPES.items()}
    for name, layout_name in CASES:
        config = ParallelConfig(**LAYOUTS[layout_name])
        shape = check_layout(config, MODEL, processes.world_size)
        layout = make_layout(shape, processes.device)
        results[f"{name}, {layout_name}"] = compared(layout, config, name, expected[name])
    if processes.is_main:
        Path(out).write_text(json.dumps(results))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
