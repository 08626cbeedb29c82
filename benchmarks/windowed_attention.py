"""Measures attention on a CPU as a function of the sequence length, with a fixed window.

It times forward and backward of one layer over one sequence, for blocks and for torch's kernel with
a mask.

    python benchmarks/windowed_attention.py [--window 256] [--repeats 5]
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks.figures import write_results
from benchmarks.machine import described, machine
from conf.machine import fitting_precision, processor

LENGTHS = (512, 1024, 2048, 4096, 8192)
HEADS, KV_HEADS, HEAD_DIM = 6, 2, 64


def main() -> None:
    """Times both in turns, and writes figures, table and plot."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--window", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument(
        "--out", type=Path, default=Path("benchmarks/results/windowed_attention.json")
    )
    options = parser.parse_args()
    precision = fitting_precision(processor("cpu"))
    figures: dict[str, Any] = {"machine": machine(), "precision": precision}
    figures |= {"window": options.window, "lengths": {}}
    for length in LENGTHS:
        found = times(length, options.window, options.repeats, precision)
        medians = {name: statistics.median(values) for name, values in found.items()}
        figures["lengths"][length] = medians
        print(
            length, {name: f"{value * 1e3:.1f} ms" for name, value in medians.items()}, flush=True
        )
    write_results(options.out, figures, table(figures))
    plot(figures, options.out.with_suffix(".png"))


def times(length: int, window: int, repeats: int, precision: str) -> dict[str, list[float]]:
    """Returns the seconds of forward and backward of one sequence per backend, in turns."""
    import torch

    from conf.machine import DTYPES
    from model.attention.backends import attend
    from model.attention.mask import attention_mask

    shapes = [(1, length, heads, HEAD_DIM) for heads in (HEADS, KV_HEADS, KV_HEADS)]
    dtype = getattr(torch, DTYPES[precision])
    q, k, v = (torch.randn(shape, dtype=dtype, requires_grad=True) for shape in shapes)
    masks = {
        name: attention_mask(name, 1, length, window, None, q.device) for name in ("blocks", "sdpa")
    }
    seconds: dict[str, list[float]] = {name: [] for name in masks}
    for turn in range(repeats + 1):
        for name, mask in masks.items():
            started = time.perf_counter()
            out = attend(q, k, v, mask)
            torch.autograd.grad(out, (q, k, v), torch.ones_like(out))
            if turn:  # the first one fills caches
                seconds[name].append(time.perf_counter() - started)
    return seconds


def table(figures: dict[str, Any]) -> str:
    """Formats the figures as Markdown."""
    about = described(figures["machine"])
    lines = [
        f"Attention of one sequence, forward and backward, {figures['precision']}, "
        f"{HEADS} heads over {KV_HEADS}, head size {HEAD_DIM}, "
        f"window {figures['window']}; medians. {about}.",
        "",
        "| tokens | blocks, ms | us a token | sdpa under a mask, ms | us a token |",
        "|---|---|---|---|---|",
    ]
    for length, seconds in figures["lengths"].items():
        cells = (
            f"{seconds[name] * 1e3:.1f} | {seconds[name] / int(length) * 1e6:.1f}"
            for name in ("blocks", "sdpa")
        )
        lines.append(f"| {length} | {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def plot(figures: dict[str, Any], path: Path) -> None:
    """Plots both lines on logarithmic axes."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 4))
    lengths = [int(length) for length in figures["lengths"]]
    for name in ("blocks", "sdpa"):
        values = [seconds[name] * 1e3 for seconds in figures["lengths"].values()]
        axes.loglog(lengths, values, marker="o", label=name)
    axes.set(xlabel="sequence length", ylabel="ms, forward and backward", xticks=lengths)
    axes.set_xticklabels([str(length) for length in lengths])
    axes.legend()
    axes.set_title(f"window {figures['window']}")
    figure.tight_layout()
    figure.savefig(path, dpi=100)


if __name__ == "__main__":
    main()
