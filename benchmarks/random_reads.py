"""Compares random reads of packed 2048-token samples with Megatron-core's GPTDataset.

Both read the same shard, warm in the page cache, in one process and one thread. They read the same
number of samples in turns, and the ratio of each pair is reported. Headwater returns whole batches
(tokens, labels, document boundaries) and compares the checksum of each block when it first reads
it, which is timed separately. Megatron returns the tensors of single samples, not yet collated.

    python benchmarks/random_reads.py [--quick]
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))
from benchmarks import corpora
from benchmarks.figures import write_results
from benchmarks.machine import machine

SEQ_LEN = 2048


def main() -> None:
    """Makes the shard, times both, and writes the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=float, default=4e8)
    parser.add_argument("--samples", type=int, default=20_000, help="read in a turn")
    parser.add_argument("--batch", type=int, default=8, help="samples of a micro-batch")
    parser.add_argument("--step", type=int, default=64, help="samples located at once")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--quick", action="store_true", help="2e7 tokens, 3 pairs")
    parser.add_argument("--folder", type=Path, help="where to work")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/random_reads.json"))
    options = parser.parse_args()
    if options.quick:
        options.tokens, options.samples, options.repeats = 2e7, 4000, 3
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        write_results(options.out, compare(options, Path(folder)))


def compare(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Returns samples per second of both, and the ratio of each pair."""
    entry = corpora.random_shard(folder / "train/web-00000", int(options.tokens), 0)
    corpora.write_manifest(folder, {"web": [entry]})
    prefix = folder / "train/web-00000"
    dataset = corpora.gpt_dataset(prefix, SEQ_LEN, None, folder / "cache")
    count = min(options.samples, len(dataset) - 1, entry["tokens"] // SEQ_LEN - 1)
    count -= count % options.step
    ours = make_ours(folder, count, options)

    def megatron() -> None:
        for number in range(count):
            dataset[number]

    seconds(megatron)  # both have seen their pages
    first = count / seconds(ours)
    pairs = []
    for number in range(options.repeats):
        sides = [ours, megatron] if number % 2 else [megatron, ours]
        took = {side: seconds(side) for side in sides}
        pairs.append((count / took[ours], count / took[megatron]))
    return {
        "machine": machine(),
        "tokens": entry["tokens"],
        "samples": count,
        "sequence_length": SEQ_LEN,
        "ours_samples_per_second": statistics.median(pair[0] for pair in pairs),
        "ours_first_touch_samples_per_second": first,
        "megatron_samples_per_second": statistics.median(pair[1] for pair in pairs),
        "times_megatron": statistics.median(pair[0] / pair[1] for pair in pairs),
        "pairs": pairs,
    }


def make_ours(folder: Path, count: int, options: argparse.Namespace) -> Callable[[], None]:
    """Reads `count` samples step by step, in micro-batches, like the trainer's loader."""
    import numpy as np

    from data_pipeline.sampling.batches import BatchReader
    from data_pipeline.sampling.order import SampleOrder
    from data_pipeline.sampling.stage import Stage
    from data_pipeline.store.manifest import load_manifest

    manifest = load_manifest(folder)
    stage = Stage(SEQ_LEN, count, {"web": 1})
    reader = BatchReader(manifest, SampleOrder(manifest.source_tokens("train"), [stage], 1))

    def read() -> None:
        for first in range(0, count, options.step):
            for _ in reader.read_all(0, first + np.arange(options.step), options.batch):
                pass

    return read


def seconds(call: Callable[[], None]) -> float:
    """Returns the seconds that a call takes."""
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
