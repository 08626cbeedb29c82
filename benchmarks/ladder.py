"""Forecasts a run of 4 times the size and tokens of a ladder's largest, and trains it three times.

    python benchmarks/ladder.py --data data/docs512 [--tokens-per-parameter 48]

`--data` is the demo's corpus with a vocabulary of 512, so that the head is a small part of models
of this size:

    python -m data_pipeline tokenize corpus=python_docs tokenizer=bpe_8k tokenizer.vocab_size=512 \
        out=data/docs512

The ladder is `python -m launch study study=ladder` with 4 sizes, 3 numbers of tokens and 2 seeds.
Its CPU time is measured before the target is trained. The forecast is made from the ladder alone.

Sequences of 16 tokens and one batch for all sizes let the loss of such small models fall smoothly:
with 128 tokens, they learn to copy from the context one after the other, and with batches that
shrink with the size, the gradients of the smallest ones are too noisy.

The first part needs no training: the law is fitted to synthetic losses of known constants.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
import numpy as np

from benchmarks.figures import write_results
from benchmarks.machine import described, machine
from launch.studies.fits.scaling_law import LEVEL, Law, fit_with_intervals, points_of

ROOT = Path(__file__).parents[1]
RESULTS = Path("benchmarks/results/ladder.json")
KNOWN = {
    "Chinchilla": Law(1.69, 406.4, 0.34, 410.7, 0.28),
    "steeper in tokens": Law(1.2, 60.0, 0.25, 900.0, 0.38),
}
NOISES = (5e-4, 2e-3, 5e-3)
MULTIPLES = (1, 2, 4)
GAP = 4
KEYS = (
    "study.rule=transfer",
    "study.rate_factor=65",  # 0.013
    "study.batch_samples=128",
    "study.sizes=[14080,20160,26112,32480]",
    "study.seeds=[0,1]",
)


def main() -> None:
    """Fits synthetic points, trains the ladder and the target, and writes figures and table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", help="the corpus; without it, only synthetic points are fitted")
    parser.add_argument("--folder", type=Path, default=Path("runs/ladder_benchmark"))
    parser.add_argument("--heads", type=int, default=12, help="heads of the target")
    parser.add_argument("--head-dim", type=int, default=4)
    parser.add_argument("--layers", type=int, default=4, help="layers of the target")
    parser.add_argument("--seq-len", type=int, default=16)
    parser.add_argument("--step", type=float, default=1.6, help="factor between sizes")
    parser.add_argument("--tokens-per-parameter", type=float, default=48.0)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of the target")
    parser.add_argument("--jobs", type=int, default=2, help="runs at the same time")
    parser.add_argument("--draws", type=int, default=50, help="synthetic draws per law and noise")
    parser.add_argument("--study", nargs="*", default=KEYS, help="further keys of the study")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    before = json.loads(options.out.read_text()) if options.out.is_file() else {}
    figures: dict[str, Any] = before | {"machine": machine()}
    if options.draws:
        figures["synthetic"] = synthetic(options.draws)
    if options.data:
        figures["ladder"] = ladder(options)
    write_results(options.out, figures, table(figures))


def synthetic(draws: int) -> list[dict[str, Any]]:
    """Returns how often intervals cover known constants, for 4 sizes x 3 numbers of tokens."""
    rows = []
    for name, law in KNOWN.items():
        for noise in NOISES:
            inside = [covered(law, noise, seed) for seed in range(draws)]
            rows.append({"law": name, "noise": noise, "draws": draws} | average(inside))
    return rows


def covered(law: Law, noise: float, seed: int) -> dict[str, float]:
    """Fits one draw, and returns which values are inside their intervals."""
    sizes = np.repeat(2e7 * 2.0 ** np.arange(4), len(MULTIPLES))
    tokens = sizes * np.tile([20.0 * multiple for multiple in MULTIPLES], 4)
    random = np.random.default_rng(seed)
    losses = law.loss(sizes, tokens) * np.exp(noise * random.standard_normal(len(sizes)))
    found = fit_with_intervals(points_of(sizes, tokens, losses), draws=100, seed=seed)
    constants = found.constants
    at = (GAP * sizes.max(), GAP * tokens.max())
    forecast, truth = found.forecast(*at), law.loss(*at)
    return {
        "all_constants": all(constants[key].covers(getattr(law, key)) for key in Law._fields),
        "forecast": forecast.covers(truth * np.exp(noise * random.standard_normal())),
        "error": abs(forecast.value / truth - 1),
        "half_width": (forecast.high - forecast.low) / 2 / truth,
    }


def average(rows: list[dict[str, float]]) -> dict[str, float]:
    """Returns the means over all rows."""
    return {key: float(np.mean([row[key] for row in rows])) for key in rows[0]}


def ladder(options: argparse.Namespace) -> dict[str, Any]:
    """Trains the ladder, then the target, and returns the forecast and what was reached."""
    base = target(options)
    keys = [
        f"study.size_step={options.step}",
        f"study.gap={GAP}",
        f"study.multiples=[{','.join(map(str, MULTIPLES))}]",
        f"study.tokens_per_parameter={options.tokens_per_parameter / MULTIPLES[-1]}",
        *options.study,
    ]
    small = study(options, keys, base)
    seeds = ",".join(map(str, options.seeds))
    large = study(options, [*keys, f"study.target_seeds=[{seeds}]"], base)
    finding = json.loads((options.folder / "finding.json").read_text())
    return {
        "ladder_cpu_seconds": small,
        "target_cpu_seconds": large,
        "base": base,
        "keys": keys,
        "decision": finding["decision"],
        "facts": finding["facts"],
        "numbers": {k: v for k, v in finding.items() if k not in ("decision", "facts")},
    }


def target(options: argparse.Namespace) -> list[str]:
    """Returns the command of the target."""
    hidden = options.head_dim * options.heads
    mlp = 8 * round(hidden * 2.75 / 8)
    blocks = options.layers * (4 * hidden**2 + 3 * hidden * mlp)
    tokens = round((blocks + 512 * hidden) * options.tokens_per_parameter)
    return [
        *("model=demo_3m", "model.vocab_size=512", f"model.max_seq_len={options.seq_len}"),
        *(f"model.hidden_size={hidden}", f"model.intermediate_size={mlp}"),
        f"model.head_dim={options.head_dim}",
        *(f"model.num_heads={options.heads}", f"model.num_kv_heads={options.heads}"),
        *(f"model.num_layers={options.layers}", "model.sliding_window=null"),
        *("optim=muon", f"data.folder={Path(options.data).resolve()}", "recipe=demo"),
        *("~recipe.stages.long", f"recipe.stages.short.tokens={tokens}"),
        f"recipe.stages.short.seq_len={options.seq_len}",
        *("recipe.stages.short.mixture={}", "logger=files", "report=false", "device=cpu"),
        *("precision=fp32", "parallel.compile=false", "parallel.attention=blocks"),
        *("validation.every_steps=0", "validation.tokens=131072", "checkpoint.every_steps=0"),
    ]


def study(options: argparse.Namespace, keys: list[str], base: list[str]) -> float:
    """Runs the study, or what is missing of it, and returns the CPU seconds of its processes."""
    before = cpu_seconds()
    subprocess.run(
        [
            *(sys.executable, "-m", "launch", "study", "study=ladder", f"out={options.folder}"),
            *(f"max_jobs={options.jobs}", "nproc=1", *keys, "--", *base),
        ],
        cwd=ROOT,
        check=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    return cpu_seconds() - before


def cpu_seconds() -> float:
    """Returns the CPU time of all processes that this one has started and that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def table(figures: dict[str, Any]) -> str:
    """Returns the page of results."""
    lines = ["# A ladder's forecast, compared with what was trained", ""]
    if found := figures.get("ladder"):
        lines += trained_table(found, figures)
    if rows := figures.get("synthetic"):
        lines += synthetic_table(rows)
    return "\n".join(lines) + "\n"


def trained_table(found: dict[str, Any], figures: dict[str, Any]) -> list[str]:
    """Returns the lines about the trained ladder."""
    numbers, got = found["numbers"], found["numbers"]["target"]
    at = numbers["forecast"]["loss"]
    return [
        f"`python benchmarks/ladder.py`, {described(figures['machine'])}. CPU seconds in one "
        f"thread per run: ladder {found['ladder_cpu_seconds']:,.0f} (with the start of each "
        f"process), target {found['target_cpu_seconds']:,.0f} "
        f"({len(got['losses'])} seeds). The machine may have been busy, which does not change "
        "losses.",
        "",
        "| | nats per token |",
        "|---|---|",
        f"| forecast from the ladder | {at['value']:.4f} ({at['low']:.4f} to {at['high']:.4f}) |",
        f"| trained, {len(got['losses'])} seeds | {', '.join(f'{x:.4f}' for x in got['losses'])} |",
        f"| error of the forecast | {got['relative_error']:+.2%} |",
        f"| standard deviation between seeds | {got['standard_deviation'] / got['mean']:.2%} |",
        f"| results inside the {LEVEL:.0%} interval | {got['covered']} of {len(got['losses'])} |",
        "",
        *(f"- {fact}" for fact in [found["decision"], *found["facts"]]),
        "",
        f"Keys of the study: `{' '.join(found['keys'])}`",
        "",
        f"Command of the target: `{' '.join(w for w in found['base'] if 'data.folder' not in w)}`",
        "",
    ]


def synthetic_table(rows: list[dict[str, Any]]) -> list[str]:
    """Returns the lines about synthetic points."""
    return [
        "## Synthetic points with known constants",
        "",
        f"4 sizes x 3 numbers of tokens; noise is the standard deviation of log L. The forecast is "
        f"for {GAP} times the size and tokens; coverage should be {LEVEL:.0%}.",
        "",
        "| law | noise | draws | all five constants inside | forecast inside | mean error | half "
        "of the interval |",
        "|---|---|---|---|---|---|---|",
        *(
            f"| {row['law']} | {row['noise']:.2%} | {row['draws']} | {row['all_constants']:.0%} | "
            f"{row['forecast']:.0%} | {row['error']:.2%} | {row['half_width']:.2%} |"
            for row in rows
        ),
        "",
    ]


if __name__ == "__main__":
    main()
