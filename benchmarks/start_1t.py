"""Measures the start of a run on a trillion tokens, and of Megatron-core's GPTDataset.

For Headwater: seconds and memory from the manifest of 1T tokens in shards of 64M (sparse files) to
the first batch of a whole Danube step (576 samples of 2048), beyond what the interpreter uses after
its imports. For Megatron: seconds, memory and index files for one shard of 1e7, 1e8 ... tokens with
documents of 1000. Each measurement is a separate process. What grows with the corpus is the work
before reading; the holes of sparse files are slow to read for both.

    python benchmarks/start_1t.py [--quick]
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))
from benchmarks import corpora
from benchmarks.figures import write_results
from benchmarks.machine import machine

SHARD_TOKENS = 1 << 26
SEQ_LEN = 2048
STEP_SAMPLES = 576


def main() -> None:
    """Makes the files, measures both, and writes the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=float, default=1e12)
    parser.add_argument("--megatron-tokens", type=float, nargs="*", default=[1e7, 1e8, 1e9, 1e10])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="1e10 and 1e7 tokens, once")
    parser.add_argument("--side", choices=("ours", "megatron"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help="where to work")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/start_1t.json"))
    options = parser.parse_args()
    if options.quick:
        options.tokens, options.megatron_tokens, options.repeats = 1e10, [1e7], 1
    if options.side:
        figures = {"ours": ours, "megatron": megatron}[options.side](options.folder)
        print(json.dumps(figures))
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        write_results(options.out, compare(options, Path(folder)))


def compare(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Returns the figures of both, medians over repeats."""
    figures: dict[str, Any] = {"machine": machine()}
    shards = max(1, round(options.tokens / SHARD_TOKENS))
    names = [f"web-{number:05}" for number in range(shards)]
    entries = [corpora.sparse_shard(folder / "ours/train" / name, SHARD_TOKENS) for name in names]
    corpora.write_manifest(folder / "ours", {"web": entries[::2], "code": entries[1::2]})
    figures["ours"] = measure("ours", folder / "ours", options.repeats)
    figures["ours"] |= {"tokens": shards * SHARD_TOKENS, "shards": shards}
    figures["megatron"] = []
    for tokens in map(int, options.megatron_tokens):
        work = folder / f"megatron-{tokens}"
        corpora.sparse_shard(work / "shard", tokens, whole_index=True)
        result = measure("megatron", work, options.repeats)
        result["index_bytes_per_token"] = result["index_bytes"] / tokens
        figures["megatron"].append({"tokens": tokens, **result})
    if len(figures["megatron"]) > 1:
        figures["megatron_at_our_size_if_it_grows_on"] = {
            key: extrapolate(figures["megatron"][-2:], key, figures["ours"]["tokens"])
            for key in ("seconds_before_reading", "index_bytes", "anonymous_megabytes")
        }
    return figures


def extrapolate(sizes: list[dict[str, float]], key: str, tokens: float) -> float:
    """Extrapolates the straight line through the two largest sizes to another size."""
    one, other = sizes
    slope = (other[key] - one[key]) / (other["tokens"] - one["tokens"])
    return other[key] + slope * (tokens - other["tokens"])


def measure(side: str, folder: Path, repeats: int) -> dict[str, Any]:
    """Returns medians over new processes."""
    command = [sys.executable, __file__, "--side", side, "--folder", str(folder)]
    runs = []
    for _ in range(repeats):
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        runs.append(json.loads(done.stdout.splitlines()[-1]))
    return {key: statistics.median(run[key] for run in runs) for key in runs[0]}


def ours(folder: Path) -> dict[str, float]:
    """Measures from the manifest to the first batch of a step."""
    import numpy as np

    from data_pipeline.sampling.batches import BatchReader
    from data_pipeline.sampling.order import SampleOrder
    from data_pipeline.sampling.stage import Stage
    from data_pipeline.store.manifest import load_manifest

    before, started = corpora.memory(), time.perf_counter()
    manifest = load_manifest(folder)
    tokens = manifest.source_tokens("train")
    samples = int(0.9 * sum(tokens.values())) // SEQ_LEN
    stage = Stage(SEQ_LEN, samples, {"web": 0.7, "code": 0.3})
    order = SampleOrder(tokens, [stage], seed=0, max_epochs=4, atom=16384)
    reader = BatchReader(manifest, order)
    ready = time.perf_counter()
    batches = list(reader.read_all(0, samples // 2 + np.arange(STEP_SAMPLES), 8))
    figures = used(before, started)
    assert sum(len(batch.tokens) for batch in batches) == STEP_SAMPLES
    return figures | {"seconds_before_reading": ready - started}


def megatron(folder: Path) -> dict[str, float]:
    """Measures the index of one epoch and the first batch, with an empty cache."""
    corpora.import_megatron()
    with tempfile.TemporaryDirectory(dir=folder) as cache:
        before, started = corpora.memory(), time.perf_counter()
        dataset = corpora.gpt_dataset(folder / "shard", SEQ_LEN, None, Path(cache))
        ready = time.perf_counter()
        items = [dataset[number] for number in range(min(STEP_SAMPLES, len(dataset)))]
        figures = used(before, started)
        assert len(items[0]["tokens"]) == SEQ_LEN
        size = sum(path.stat().st_size for path in Path(cache).rglob("*"))
    return figures | {"seconds_before_reading": ready - started, "index_bytes": size}


def used(before: dict[str, float], started: float) -> dict[str, float]:
    """Returns seconds, and megabytes beyond `before`."""
    seconds, after = time.perf_counter() - started, corpora.memory()
    grown = {f"{key}_megabytes": after[key] - before[key] for key in after}
    return {"seconds": seconds, **grown}


if __name__ == "__main__":
    main()
