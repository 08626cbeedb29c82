"""Measures how long a consumer of a million tokens per second waits for the real loader.

The consumer takes a step of packed samples, and then keeps the host idle for as long as a GPU would
take for the step. Waits are those of steps after the first.

    python benchmarks/data_wait.py [--rate 1e6] [--seconds 15]
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
import torch

from benchmarks import corpora
from benchmarks.figures import write_results
from benchmarks.machine import machine
from data_pipeline.sampling.batches import BatchReader
from data_pipeline.sampling.order import SampleOrder
from data_pipeline.sampling.recipe import RecipeConfig, StageConfig, StagePlan
from data_pipeline.store.manifest import load_manifest
from pretrain.loader import Loader

SEQ, BATCH_TOKENS = 2048, 131_072


def main() -> None:
    """Makes the shard, consumes it, and writes the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rate", type=float, default=1e6, help="tokens per second")
    parser.add_argument("--seconds", type=float, default=15)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/data_wait.json"))
    options = parser.parse_args()
    steps = max(3, int(options.seconds * options.rate / BATCH_TOKENS))
    with tempfile.TemporaryDirectory() as folder:
        loader = make_loader(Path(folder), steps)
        waits = consume(loader, steps, BATCH_TOKENS / options.rate)
        loader.close()
    figures = {
        "machine": machine(),
        "tokens_per_second": options.rate,
        "steps": steps,
        "first_step_waited": waits[0],
        "median_wait_seconds": median(waits[1:]),
        "longest_wait_seconds": max(waits[1:]),
        "waited_share": sum(waits[1:]) / (len(waits[1:]) * BATCH_TOKENS / options.rate),
    }
    write_results(options.out, figures)


def make_loader(folder: Path, steps: int) -> Loader:
    """Returns the loader of a single rank that reads the whole batch."""
    tokens = (steps + 8) * BATCH_TOKENS
    corpora.write_manifest(
        folder, {"web": [corpora.random_shard(folder / "train/web-0", tokens, 0)]}
    )
    manifest = load_manifest(str(folder))
    stage = StageConfig(SEQ, steps * BATCH_TOKENS, {"web": 1.0})
    sizes = manifest.source_tokens("train")
    plan = StagePlan(RecipeConfig("wait", BATCH_TOKENS, {"all": stage}), sizes)
    order = SampleOrder(sizes, plan.stages, 0, 4)
    reader = BatchReader(manifest, order)
    return Loader(reader, plan, 0, 1, 16 * SEQ, [None], torch.device("cpu"))


def consume(loader: Loader, steps: int, step_seconds: float) -> list[float]:
    """Returns the seconds of waiting per step."""
    waits = []
    for step in range(steps):
        began = time.perf_counter()
        data: Any = loader.get(step)
        waits.append(data.wait_seconds)
        time.sleep(max(0.0, step_seconds - (time.perf_counter() - began)))
    return waits


if __name__ == "__main__":
    main()
