"""Compares how hyperparameters transfer over width and depth with CompleteP and without it.

    python benchmarks/completep.py [coordinates|rates|table] [--optimizer adamw] [--seeds 1]

`coordinates` measures by how much eight steps change activations, for widths of 64 to 512 and
depths of 2 to 16 (`launch.studies.coordinates`). `rates` trains models of three widths at several
learning rates, on bytes of Python's standard library, and fits a parabola to the losses of the best
rate and its neighbors. Each part adds its figures to the same file, and rates that are in it
already are not run again; `table` only writes the table. All comparisons are at equal tokens, so
that they do not depend on the speed of the machine.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import sysconfig
from dataclasses import asdict, replace
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
import torch
from torch import Tensor

from benchmarks.machine import described, machine
from launch.studies.coordinates import (
    PLACES,
    Point,
    coordinate_check,
    slopes,
)
from launch.studies.fits.parabola import NEIGHBORS, drift, optimum
from launch.studies.shapes import completep, resized
from model.config import ModelConfig
from model.init import initial_value
from model.network import Decoder
from model.parametrization import parametrization_of
from pretrain.config import OptimConfig
from pretrain.optim import build_optimizer

RESULTS = Path("benchmarks/results/completep.json")
BASE = ModelConfig(
    name="base",
    vocab_size=256,
    hidden_size=64,
    intermediate_size=160,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    max_seq_len=64,
)
PARAMETRIZATIONS = ("completep", "standard")
SIZES = {"hidden_size": (64, 128, 256, 512), "num_layers": (2, 4, 8, 16)}
CHECK_RATE, CHECK_STEPS = 0.002, 8
WIDTHS = (16, 32, 64)
RATES = {
    "adamw": tuple(2.0**power for power in range(-8, -2)),
    "muon": tuple(2.0**power for power in range(-6, -1)),
}
INITIALIZER_RANGE = 0.15
"""Value for the runs at several rates: 0.6 / sqrt(16). With 0.02, models this narrow stay on a
plateau for a number of steps that depends on the seed, which hides the optimum."""
HEAD_DIM = 8
"""Width per head in the runs at several rates, so that the narrowest model has two heads."""
STEPS, BATCH, SEQ, HELD_OUT = 150, 16, 64, 256
SETTINGS = {
    "steps": STEPS,
    "bytes_per_step": BATCH * SEQ,
    "initializer_range": INITIALIZER_RANGE,
    "head_dim": HEAD_DIM,
}


def main() -> None:
    """Measures one part, or all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", nargs="?", choices=("coordinates", "rates", "table", "all"))
    parser.add_argument("--optimizer", action="append", choices=("adamw", "muon"))
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    part, optimizers = options.part or "all", options.optimizer or ["adamw", "muon"]
    for optimizer, kind in product(optimizers, PARAMETRIZATIONS):
        if part in ("coordinates", "all"):
            found = coordinates(optimizer, kind)
            update(options.out, found, "coordinates", optimizer, kind)
    runs = product(range(options.seeds), optimizers, WIDTHS, PARAMETRIZATIONS)
    for seed, optimizer, width, kind in runs if part in ("rates", "all") else ():
        for rate in RATES[optimizer]:
            add_rate(options.out, optimizer, kind, width, rate, seed)
    options.out.with_suffix(".md").write_text(table(read(options.out)))


def add_rate(path: Path, optimizer: str, kind: str, width: int, rate: float, seed: int) -> None:
    """Trains a model, and adds its loss to the file, unless it is there already."""
    figures = read(path)
    if figures.get("settings") != SETTINGS:  # losses of other settings do not compare
        update(path, {"settings": SETTINGS, "rates": {}})
    place = (optimizer, kind, str(width), str(rate))
    if str(seed) in found_at(read(path), "rates", *place):
        return
    # At the base width, both parametrizations are the same model to the bit.
    base = ("rates", optimizer, PARAMETRIZATIONS[0], str(width), str(rate))
    loss = found_at(read(path), *base).get(str(seed)) if width == WIDTHS[0] else None
    loss = loss or trained(optimizer, kind, width, rate, seed)
    update(path, {str(seed): loss}, "rates", *place)
    print(*place, seed, f"{loss:.4f}", flush=True)


def found_at(figures: dict[str, Any], *keys: str) -> dict[str, Any]:
    """Returns the figures under some keys, or none."""
    for key in keys:
        figures = figures.get(key, {})
    return figures


def read(path: Path) -> dict[str, Any]:
    """Returns the figures so far."""
    return dict(json.loads(path.read_text())) if path.exists() else {}


def update(path: Path, figures: dict[str, Any], *keys: str) -> None:
    """Adds figures under some keys of the file."""
    found = read(path) | {"machine": machine()}
    place = found
    for key in keys:
        place = place.setdefault(key, {})
    place.update(figures)
    path.write_text(json.dumps(found, indent=1) + "\n")


def model_of(kind: str, width: int, depth: int, base: ModelConfig = BASE) -> ModelConfig:
    """Returns a model of a size, under a parametrization."""
    model = resized(base, width, depth)
    return completep(model, base) if kind == "completep" else model


def coordinates(optimizer: str, kind: str) -> dict[str, Any]:
    """Returns the points of the coordinate check by size."""
    optim = OptimConfig(optimizer, learning_rate=CHECK_RATE, weight_decay=0.0)
    shapes = {
        "hidden_size": [(width, BASE.num_layers) for width in SIZES["hidden_size"]],
        "num_layers": [(BASE.hidden_size, depth) for depth in SIZES["num_layers"]],
    }
    return {
        size: [
            asdict(point)
            for point in coordinate_check(
                [model_of(kind, *shape) for shape in shapes[size]], optim, CHECK_STEPS
            )
        ]
        for size in SIZES
    }


@cache
def corpus() -> Tensor:
    """Returns sequences (rows, SEQ + 1) of bytes of Python's standard library, shuffled."""
    folder = Path(sysconfig.get_path("stdlib"))
    need, found = (STEPS * BATCH + HELD_OUT) * (SEQ + 1), bytearray()
    for file in sorted(folder.glob("*.py")):
        found += file.read_bytes()
    stride = len(found) // need  # spread over all modules
    assert stride >= 1, "the standard library is too small"
    whole = torch.frombuffer(found, dtype=torch.uint8)
    rows = whole[: len(whole) // (SEQ + 1) * (SEQ + 1)].view(-1, SEQ + 1)
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))
    return rows[order[: STEPS * BATCH + HELD_OUT]].long()


def trained(optimizer: str, kind: str, width: int, rate: float, seed: int) -> float:
    """Returns the held-out loss of a model after STEPS steps, in nats per byte."""
    heads = BASE.hidden_size // HEAD_DIM
    narrow = replace(
        BASE,
        initializer_range=INITIALIZER_RANGE,
        head_dim=HEAD_DIM,
        num_heads=heads,
        num_kv_heads=heads // 2,
    )
    base = resized(narrow, WIDTHS[0], BASE.num_layers)
    config = model_of(kind, width, BASE.num_layers, base)
    model, rows = Decoder(config), corpus()
    order = torch.randperm(STEPS * BATCH, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(initial_value(name, parameter.shape, config, seed))
    optim = OptimConfig(optimizer, learning_rate=rate)
    adapted = build_optimizer(model, optim, None, parametrization_of(config))
    for step in range(STEPS):
        batch = rows[HELD_OUT + order[step * BATCH :][:BATCH]]
        loss = model(batch[:, :-1], batch[:, 1:].contiguous())
        (loss / (BATCH * SEQ)).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        now = min((step + 1) / (0.1 * STEPS), (STEPS - step) / (0.9 * STEPS))
        for group in adapted.param_groups:
            group["lr"] = rate * now * group["lr_scale"]
        adapted.step()
        adapted.zero_grad()
    held_out = rows[:HELD_OUT]
    with torch.no_grad():
        total = model(held_out[:, :-1], held_out[:, 1:].contiguous())
    return float(total) / (HELD_OUT * SEQ)


def table(figures: dict[str, Any]) -> str:
    """Returns the Markdown of all figures."""
    lines = [
        "# Transfer of hyperparameters with CompleteP and without it",
        "",
        f"`python benchmarks/completep.py`, {described(figures['machine'])}, fp32. Base model: "
        f"{BASE.num_layers} layers of {BASE.hidden_size}, heads of {BASE.head_dim}, vocabulary of "
        f"{BASE.vocab_size}.",
        "",
        "## Coordinate check",
        "",
        f"Exponent e with which the change of an activation in {CHECK_STEPS} steps grows as "
        "size^e, and the largest factor between two sizes in parentheses. 0 and 1 are flat. Widths "
        f"{SIZES['hidden_size']} at {BASE.num_layers} layers, depths {SIZES['num_layers']} at a "
        f"width of {BASE.hidden_size}; learning rate {CHECK_RATE}.",
        "",
        f"| optimizer | parametrization | over | {' | '.join(PLACES)} |",
        f"|---|---|---|{'---|' * len(PLACES)}",
    ]
    for optimizer, kinds in figures.get("coordinates", {}).items():
        for kind, sizes in kinds.items():
            for size, found in sizes.items():
                points = [Point(**point) for point in found]
                cells = []
                for place, slope in slopes(points, size).items():
                    values = [point.changes[place] for point in points]
                    cells.append(f"{slope:+.2f} ({max(values) / min(values):.2f})")
                lines.append(f"| {optimizer} | {kind} | {size} | {' | '.join(cells)} |")
    lines += [
        "",
        "## Optimum of the learning rate over the width",
        "",
        f"Held-out loss in nats per byte after {STEPS} steps of {BATCH * SEQ:,} bytes, with a "
        "linear warm-up over a tenth of the steps and linear decay to 0, as the mean of the seeds. "
        f"The base model of completep has a width of {WIDTHS[0]}; heads have {HEAD_DIM}, and "
        f"initializer_range is {INITIALIZER_RANGE}. The optimum is that of a "
        f"parabola in log2(rate) through the best rate and {NEIGHBORS} on each side, with its 90% "
        "interval.",
        "",
    ]
    summary = []
    for optimizer, kinds in figures.get("rates", {}).items():
        lines += rates_table(optimizer, kinds)
        for kind, widths in kinds.items():
            moved = drift([optimum(losses_of(rates)) for rates in widths.values()])
            summary.append(
                f"- {optimizer}, {kind}: the optimum moves by a factor of {moved:.2f} over "
                f"widths of {', '.join(widths)}."
            )
    return "\n".join([*lines, *summary, ""])


def losses_of(rates: dict[str, dict[str, float]]) -> dict[float, list[float]]:
    """Returns the losses of all seeds by rate."""
    return {float(rate): list(by_seed.values()) for rate, by_seed in rates.items()}


def rates_table(optimizer: str, kinds: dict[str, Any]) -> list[str]:
    """Returns the lines of the table of one optimizer."""
    rates = RATES[optimizer]
    lines = [
        f"| {optimizer} | width | {' | '.join(f'{rate:.4g}' for rate in rates)} | optimum |",
        f"|---|---|{'---|' * len(rates)}---|",
    ]
    for kind, widths in kinds.items():
        for width, by_rate in widths.items():
            losses = losses_of(by_rate)
            found = optimum(losses)
            means = " | ".join(
                f"{statistics.mean(losses[r]):.3f}" if r in losses else "not run" for r in rates
            )
            seeds = min(map(len, losses.values()))
            within = "{:.4f} to {:.4f}, ".format(*found.interval) if found.interval else ""
            where = "" if found.bounded else "lowest or highest rate, "
            lines.append(
                f"| {kind} | {width} | {means} | {found.rate:.4f} ({where}{within}{seeds} seeds) |"
            )
    return [*lines, ""]


if __name__ == "__main__":
    main()
