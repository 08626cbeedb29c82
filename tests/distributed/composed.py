"""Loss and gradients of one batch under several precisions and checkpointing modes.

`python -m tests.distributed.composed OUT TP` runs on the mesh of this torchrun.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor

from model.init import initial_value
from model.network import build_meta
from pretrain.checks import check_layout
from pretrain.config import ParallelConfig
from pretrain.parallel import materialize, parallelize
from pretrain.parallel.fp8 import apply_fp8, fp8_linears
from pretrain.parallel.mesh import make_layout
from pretrain.processes import start
from tests.model.shapes import tiny

MODEL = tiny(
    architecture="qwen2",
    qkv_bias=True,
    hidden_size=64,
    intermediate_size=96,
    num_heads=4,
    head_dim=16,
    vocab_size=256,
)
CASES = [
    ("bf16", "none"),
    ("fp8", "none"),
    ("fp8_rowwise", "none"),
    ("bf16", "selective"),
    ("bf16", "full"),
    ("fp8", "selective"),
]


def main(out: str, tp: int) -> None:
    processes = start("cpu")
    config = ParallelConfig(tp=tp)
    layout = make_layout(check_layout(config, MODEL, processes.world_size), processes.device)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, 256, (4, 64), generator=generator)
    tokens = tokens.chunk(layout.dp.size())[layout.dp.get_local_rank()]
    results = {}
    for precision, mode in CASES:
        config.activation_checkpointing = mode
        model = build_meta(MODEL)
        parallelize(model, layout, config, precision)
        materialize(
            model, processes.device, lambda name, shape: initial_value(name, shape, MODEL, 0)
        )
        loss = model(tokens, tokens.roll(-1, 1))
        (loss * layout.dp.size()).backward()  # FSDP averages
        total = loss.detach().clone()
        dist.all_reduce(total, group=layout.dp.get_group())
        gradients = {}
        for name, parameter in model.named_parameters():
            assert parameter.dtype == torch.float32
            assert isinstance(parameter.grad, DTensor)
            gradients[name] = float(parameter.grad.full_tensor().double().norm())
        converted = fp8_linears(model)
        # Between steps the precision may change, also once the weights are split.
        apply_fp8(model, "bf16", processes.device)
        results[f"{precision} {mode}"] = {
            "loss": float(total),
            "gradients": gradients,
            "fp8": converted,
            "after": fp8_linears(model),
            "loss_after": float(model(tokens, tokens.roll(-1, 1))),
        }
    if processes.is_main:
        Path(out).write_text(json.dumps(results))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
