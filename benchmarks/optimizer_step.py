"""Compares an optimizer step of Muon on four gloo ranks with one rank, and with AdamW, on a CPU.

Each rank has one thread. The sides take turns; figures are minima over the repeats, because other
work on the machine only ever adds time. CPU seconds are those of the busiest rank and depend less
on other work; elapsed seconds need as many idle cores as ranks. "Every rank" is Muon without
owners: each rank orthogonalizes all matrices.

    python benchmarks/optimizer_step.py [--ranks 4] [--repeats 6] [--layers 4] [--hidden 512]
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.distributed.tensor import DTensor

from benchmarks.figures import write_results
from benchmarks.machine import described, machine
from model.config import ModelConfig
from model.init import initial_value
from model.network import build_meta
from pretrain.config import OptimConfig, ParallelConfig
from pretrain.optim import build_optimizer, is_block_matrix
from pretrain.optim.newton_schulz import flops
from pretrain.parallel import materialize, parallelize
from pretrain.parallel.mesh import make_layout

RESULTS = Path("benchmarks/results/optimizer_step.json")


def main() -> None:
    """Starts the ranks, and writes their figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=6)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    config = ModelConfig(
        name="bench",
        vocab_size=4096,
        hidden_size=options.hidden,
        intermediate_size=options.hidden * 8 // 3 // 16 * 16,
        num_layers=options.layers,
        num_heads=8,
        num_kv_heads=2,
        max_seq_len=1024,
    )
    context = mp.get_context("spawn")
    queue = context.SimpleQueue()
    port = 20_000 + time.time_ns() % 20_000
    arguments = (options.ranks, port, config, options.repeats, queue)
    mp.start_processes(measure, arguments, options.ranks, start_method="spawn")
    figures = {"machine": machine()} | queue.get()
    write_results(options.out, figures, table(figures))


def measure(
    rank: int, ranks: int, port: int, config: ModelConfig, repeats: int, queue: Any
) -> None:
    """Measures all sides on one rank; rank 0 returns the figures."""
    torch.set_num_threads(1)
    address = f"tcp://127.0.0.1:{port}"
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=ranks)
    sharded = {name: side(config, name, ranks) for name in ("adamw", "muon")}
    alone = {name: side(config, name, 1) for name in ("adamw", "muon")}
    sides = {
        f"AdamW, {ranks} ranks": (sharded["adamw"], ranks),
        f"Muon, {ranks} ranks": (sharded["muon"], ranks),
        "Muon, every rank": (alone["muon"], ranks),
        "AdamW, 1 rank": (alone["adamw"], 1),
        "Muon, 1 rank": (alone["muon"], 1),
    }
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
    for _ in range(repeats + 1):
        for name, (step, active) in sides.items():
            dist.barrier()
            started, cpu = time.perf_counter(), time.process_time()
            if rank < active:
                step()
            mine = (time.perf_counter() - started, time.process_time() - cpu)
            of_ranks: list[Any] = [None] * ranks
            dist.all_gather_object(of_ranks, mine)
            seconds[name].append((max(m[0] for m in of_ranks), max(m[1] for m in of_ranks)))
    if rank == 0:
        shapes = [
            p.shape for n, p in build_meta(config).named_parameters() if is_block_matrix(n, p.ndim)
        ]
        queue.put(
            {
                "ranks": ranks,
                "repeats": repeats,
                "matrix_parameters": sum(shape.numel() for shape in shapes),
                "newton_schulz_gigaflops": sum(flops(s[0], s[1], 5) for s in shapes) / 1e9,
                "seconds": {
                    name: {  # the first of each is a warm-up
                        "elapsed": min(elapsed for elapsed, _ in found[1:]),
                        "cpu": min(cpu for _, cpu in found[1:]),
                        "all": found[1:],
                    }
                    for name, found in seconds.items()
                },
            }
        )
    dist.barrier()
    dist.destroy_process_group()


def side(config: ModelConfig, name: str, ranks: int) -> Callable[[], None]:
    """Returns a function that takes a step: sharded by FSDP2, or unsharded if `ranks` is 1."""
    torch.manual_seed(0)
    model = build_meta(config)
    if ranks > 1:
        layout = make_layout((1, ranks, 1, 1), torch.device("cpu"))
        parallelize(model, layout, ParallelConfig(), "fp32")
        materialize(
            model, torch.device("cpu"), lambda key, shape: initial_value(key, shape, config, 0)
        )
    else:
        model.to_empty(device="cpu")
        for key, parameter in model.named_parameters():
            parameter.data = initial_value(key, parameter.shape, config, 0)
    matrices = [p for key, p in model.named_parameters() if is_block_matrix(key, p.ndim)]
    for parameter in model.parameters():  # the same parameters for both optimizers
        parameter.requires_grad_(False)
    optimizer = build_optimizer(model, OptimConfig(name=name, learning_rate=1e-3))
    gradients = [parameter.detach().clone() for parameter in matrices]

    def step() -> None:
        for parameter, gradient in zip(matrices, gradients, strict=True):
            parameter.grad = gradient
        optimizer.step()

    assert ranks == 1 or isinstance(matrices[0], DTensor)
    return step


def table(figures: dict[str, Any]) -> str:
    """Returns the figures as Markdown."""
    about = " ".join(__doc__.split("\n\n")[0].split() + __doc__.split("\n\n")[1].split())
    one = figures["seconds"]["Muon, 1 rank"]
    lines = [
        f"{about} {described(figures['machine'])}.",
        "",
        f"{figures['matrix_parameters']:,} parameters in matrices of the blocks, "
        f"{figures['newton_schulz_gigaflops']:,.0f} GFLOP of Newton-Schulz, float32; "
        f"{figures['repeats']} repeats.",
        "",
        "| side | elapsed s | CPU s of the busiest rank | of Muon on 1 rank |",
        "|---|---|---|---|",
    ]
    for name, found in figures["seconds"].items():
        lines.append(
            f"| {name} | {found['elapsed']:.3f} | {found['cpu']:.3f} "
            f"| {found['cpu'] / one['cpu']:.2f} |"
        )
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    main()
