"""Measures how much an asynchronous save slows down the step in which it starts, on a CPU.

A model trains on random tokens, and a save starts after every second step. Each step with a save
is compared with the mean of its neighbours without one. The next step starts when the save is
durable; the time spent waiting for that is reported too. Reported are the median ratio, how much
the neighbours differ from each other, how long the copy blocks, seconds to durable, and memory.

    python benchmarks/async_save.py [--model small_350m] [--tokens 1024] [--pairs 10]
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))
import torch
import torch.distributed as dist

from benchmarks.figures import write_results
from benchmarks.gpu_training import model_config
from benchmarks.machine import machine
from conf.machine import fitting_precision, processor
from model.config import ModelConfig
from model.network import Decoder
from pretrain.checkpoints.retention import Retention
from pretrain.checkpoints.saver import Saver
from pretrain.checkpoints.writer_process import WriterProcess
from pretrain.processes import start


def main() -> None:
    """Trains, saves, and writes the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="small_350m")
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--folder", type=Path, help="where to save")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/async_save.json"))
    options = parser.parse_args()
    writer = WriterProcess()
    processes = start("cpu")
    config = model_config(options.model, tiny=False)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        saver = Saver(Path(folder), processes, writer, Retention(last=1), 1800, 0)
        figures = measure(config, saver, options.tokens, options.pairs)
    writer.close()
    dist.destroy_process_group()
    about = {"model": options.model, "tokens_per_step": options.tokens}
    write_results(options.out, {"machine": machine(), **about, **figures})


def measure(config: ModelConfig, saver: Saver, tokens: int, pairs: int) -> dict[str, Any]:
    """Returns the seconds of steps without and with a save."""
    model = Decoder(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    ids = torch.randint(config.vocab_size, (1, tokens + 1))
    borders = torch.tensor([0, tokens], dtype=torch.int32)
    fits_bf16 = fitting_precision(processor("cpu")) == "bf16"

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=fits_bf16):
            loss = model(ids[:, :-1], ids[:, 1:].contiguous(), borders)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    def save(number: int) -> None:
        problem = saver.save(number, model, optimizer, {})
        assert problem is None, problem

    step()
    before = peak_bytes()
    save(0)  # the plan and the memory are made once
    saver.wait()
    after = peak_bytes()
    saver.outcomes.get()

    def plain_step() -> float:
        started = time.perf_counter()
        step()
        return time.perf_counter() - started

    plain, saving, held, durable = [plain_step()], [], [], []
    for number in range(1, pairs + 1):
        started = time.perf_counter()
        save(number)
        step()
        saving.append(time.perf_counter() - started)
        saver.wait()
        outcome = saver.outcomes.get()
        assert outcome.problem is None, outcome.problem
        held.append(outcome.stall_seconds)
        durable.append(outcome.seconds)
        plain.append(plain_step())
        figures = (plain[-2], saving[-1], plain[-1], held[-1], durable[-1])
        print(*(f"{figure:.2f}" for figure in figures), flush=True)
    neighbours = list(pairwise(plain))
    ratios = [s / statistics.mean(pair) for s, pair in zip(saving, neighbours, strict=True)]
    return {
        "pairs": pairs,
        "step_seconds": statistics.median(plain),
        "step_with_save_seconds": statistics.median(saving),
        "ratio": statistics.median(ratios),
        "ratios": ratios,
        "neighbours_differ_by": statistics.median(max(p) / min(p) - 1 for p in neighbours),
        "held_seconds": statistics.median(held),
        "durable_seconds": statistics.median(durable),
        "checkpoint_bytes": outcome.bytes,
        "peak_bytes_before_the_first_save": before,
        "peak_bytes_after_it": after,
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
    }


def peak_bytes() -> int:
    """Returns the peak memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    main()
