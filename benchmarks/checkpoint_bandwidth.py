"""Measures the bandwidth of writing and loading a checkpoint, in turns with `dd` on the same disk.

Writing is timed from the call until the checkpoint is durable, including hashes and syncs and
without training at the same time; dd uses conv=fsync. Loading is verified against the manifest and
read from the page cache; dd reads the largest file of the checkpoint to /dev/null.

    python benchmarks/checkpoint_bandwidth.py [--model small_150m] [--repeats 5]
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).parents[1]))
import torch
import torch.distributed as dist

from benchmarks.figures import write_results
from benchmarks.gpu_training import model_config
from benchmarks.machine import machine
from model.network import Decoder
from pretrain.checkpoints import files, read
from pretrain.checkpoints.retention import Retention
from pretrain.checkpoints.saver import Saver
from pretrain.checkpoints.writer_process import WriterProcess
from pretrain.processes import start


def main() -> None:
    """Writes and loads in turns with dd."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="small_150m")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="on the disk to measure")
    parser.add_argument(
        "--out", type=Path, default=Path("benchmarks/results/checkpoint_bandwidth.json")
    )
    options = parser.parse_args()
    writer = WriterProcess()
    processes = start("cpu")
    model = Decoder(model_config(options.model, tiny=False))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 1e-3)
    optimizer.step()
    optimizer.zero_grad()
    rates: dict[str, list[float]] = {"write": [], "dd_write": [], "load": [], "dd_read": []}
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        saver = Saver(folder, processes, writer, Retention(last=1), 1800, 0)
        for number in range(options.repeats + 1):
            began = time.perf_counter()
            assert saver.save(number, model, optimizer, {}) is None
            saver.wait()
            outcome = saver.outcomes.get()
            assert outcome.problem is None, outcome.problem
            seconds = {"write": time.perf_counter() - began}
            checkpoint = folder / f"step_{number}"
            size = sum(path.stat().st_size for path in checkpoint.iterdir())
            blocks = size >> 20
            zeros = ["dd", "if=/dev/zero", f"of={folder}/zeros", "bs=1M", f"count={blocks}"]
            seconds["dd_write"] = timed([*zeros, "conv=fsync"])
            began = time.perf_counter()
            problem = files.verify(checkpoint)
            assert problem is None, problem
            read.load(checkpoint, model, optimizer)
            seconds["load"] = time.perf_counter() - began
            largest = max(checkpoint.iterdir(), key=lambda path: path.stat().st_size)
            part = largest.stat().st_size / size
            seconds["dd_read"] = timed(["dd", f"if={largest}", "of=/dev/null", "bs=1M"]) / part
            if number:  # the first makes the plan and the memory
                for kind, value in seconds.items():
                    rates[kind].append(size / value)
    writer.close()
    dist.destroy_process_group()
    medians = {f"{kind}_bytes_per_second": median(values) for kind, values in rates.items()}
    about = {"machine": machine(), "model": options.model, "checkpoint_bytes": size}
    ratios = {
        "write_to_dd": median(
            a / b for a, b in zip(rates["write"], rates["dd_write"], strict=True)
        ),
        "load_to_dd": median(a / b for a, b in zip(rates["load"], rates["dd_read"], strict=True)),
    }
    write_results(options.out, about | medians | ratios)


def timed(command: list[str]) -> float:
    """Returns the seconds that a command takes."""
    began = time.perf_counter()
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
