"""Compares the held-out loss of the last weights with that of averages, and measures their cost.

    python benchmarks/averages.py --data data/python_docs [--seeds 3] [--steps 128]

A model of 2M parameters is trained on the demo's corpus once per seed and schedule: at a constant
learning rate, and with the demo's cosine decay to a tenth. Each run keeps a running average, and 16
checkpoints from which the command `average` chooses a window. All losses of a run are of the same
samples. The cost is the CPU time of an update of the running average of `demo_12m`, divided by the
number of steps between updates and by the CPU time of a step.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
import torch

from benchmarks.figures import write_results
from benchmarks.machine import described, machine
from conf.overrides import CONF_DIR
from model.config import ModelConfig
from model.init import initial_value
from model.network import build_meta
from pretrain.averages.running import RunningAverage
from pretrain.averages.window import Choice, Window

ROOT = Path(__file__).parents[1]
RESULTS = Path("benchmarks/results/averages.json")
BATCH_TOKENS = 2048
CHECKPOINTS = 16
EMA = {"decay": 0.95, "every_steps": 2}
SCHEDULES = {
    "constant": ["optim.schedule=constant"],
    "cosine": ["optim.schedule=cosine"],
}
MODEL = [
    "model=demo_12m",
    *("model.hidden_size=96", "model.intermediate_size=256", "model.num_layers=3"),
    *("model.num_heads=4", "model.head_dim=24"),
]


def main() -> None:
    """Trains all pairs, measures the cost, and writes figures and table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="the demo's corpus, tokenized")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=128)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    figures: dict[str, Any] = {"machine": machine(), "steps": options.steps, "runs": []}
    figures["cost"] = cost()
    with tempfile.TemporaryDirectory() as folder:
        for schedule in SCHEDULES:
            for seed in range(options.seeds):
                found = trained(Path(folder), options.data, schedule, seed, options.steps)
                figures["runs"].append({"schedule": schedule, "seed": seed} | found)
                write_results(options.out, figures, table(figures))


def trained(folder: Path, data: str, schedule: str, seed: int, steps: int) -> dict[str, Any]:
    """Trains one run, and returns its losses."""
    run_dir = folder / f"{schedule}_{seed}"
    every = steps // CHECKPOINTS
    command(
        *("pretrain", *MODEL, "optim=adamw_demo", *SCHEDULES[schedule], f"seed={seed}"),
        *(f"run_dir={run_dir}", f"data.folder={data}", "logger=files", "report=false"),
        *("device=cpu", "precision=fp32", "parallel.compile=false", "parallel.attention=blocks"),
        *(f"recipe.global_batch_tokens={BATCH_TOKENS}", "recipe=demo", "~recipe.stages.long"),
        f"recipe.stages.short.tokens={BATCH_TOKENS * steps}",
        *(f"optim.warmup_tokens={BATCH_TOKENS * steps // 16}", "validation.every_steps=0"),
        "validation.tokens=32768",
        *(f"checkpoint.every_steps={every}", f"checkpoint.keep_last={CHECKPOINTS}"),
        *(f"ema.decay={EMA['decay']}", f"ema.every_steps={EMA['every_steps']}"),
    )
    lines = map(json.loads, (run_dir / "metrics.jsonl").read_text().splitlines())
    last = [line for line in lines if line["kind"] == "validation"][-1]
    said = command(
        *("pretrain", "average", f"run={run_dir}", "steps=auto", "device=cpu", "tokens=32768"),
        f"out={run_dir}/averaged",
    )
    rows = [line.split() for line in said.splitlines()[1:] if line.strip()[:1].isdigit()]
    windows = [[int(size), float(one), float(other)] for size, one, other in rows]
    return {"loss": last["loss"], "ema_loss": last["ema"]["loss"], "windows": windows}


def cost() -> dict[str, Any]:
    """Returns the CPU seconds of a step and of an update of the average, in one thread."""
    import yaml

    torch.set_num_threads(1)
    content = yaml.safe_load((CONF_DIR / "model" / "demo_12m.yaml").read_text())
    config = ModelConfig(**content)
    model = build_meta(config, "blocks").to_empty(device="cpu")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(initial_value(name, parameter.shape, config, 0))
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    average = RunningAverage(model.named_parameters(), 0.999, torch.device("cpu"))
    tokens = torch.randint(0, config.vocab_size, (8, 256))
    skipped = torch.zeros(())

    def step() -> None:
        loss = model(tokens, tokens, torch.arange(0, 8 * 256 + 1, 256, dtype=torch.int32))
        loss = loss[0] if isinstance(loss, tuple) else loss
        (loss / tokens.numel()).backward()
        optimizer.step()
        optimizer.zero_grad()

    steps = [cpu_seconds(step) for _ in range(6)][1:]
    updates = [cpu_seconds(lambda: average.add(skipped)) for _ in range(21)][1:]
    found = {"step_seconds": min(steps), "update_seconds": min(updates), "step_tokens": 8 * 256}
    return found | {"share_every_10_steps": found["update_seconds"] / 10 / found["step_seconds"]}


def cpu_seconds(call: Callable[[], None]) -> float:
    """Returns the CPU time of a call, which other work on the machine hardly changes."""
    started = time.process_time()
    call()
    return time.process_time() - started


def command(*arguments: str) -> str:
    """Runs a command of the project, and returns its output."""
    done = subprocess.run(
        [sys.executable, "-m", *arguments], cwd=ROOT, capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    return done.stdout


def table(figures: dict[str, Any]) -> str:
    """Returns the page of results."""
    cost, runs = figures["cost"], figures["runs"]
    tokens = figures["steps"] * BATCH_TOKENS
    lines = [
        "# Averages of weights, compared with the last weights",
        "",
        f"`python benchmarks/averages.py`, {described(figures['machine'])}. A model of 2M "
        f"parameters, {tokens:,} tokens of the demo's corpus in {figures['steps']} steps, fp32. "
        "Held-out losses in nats per token; lower is better. The running average has decay "
        f"{EMA['decay']} and an update every {EMA['every_steps']} steps.",
        "",
        "| schedule | seed | last weights | running average | difference |",
        "|---|---|---|---|---|",
    ]
    for run in runs:
        lines.append(
            f"| {run['schedule']} | {run['seed']} | {run['loss']:.4f} | {run['ema_loss']:.4f} | "
            f"{run['ema_loss'] - run['loss']:+.4f} |"
        )
    for schedule in SCHEDULES:
        gains = [r["ema_loss"] - r["loss"] for r in runs if r["schedule"] == schedule]
        if not gains:
            continue
        spread = f" ± {statistics.stdev(gains):.4f}" if len(gains) > 1 else ""
        lines.append(
            f"| {schedule} | mean of {len(gains)} | | | {statistics.mean(gains):+.4f}{spread} |"
        )
    lines += ["", f"`average steps=auto` over the last {CHECKPOINTS} checkpoints:", ""]
    sizes = [size for size, _, _ in runs[0]["windows"]]
    lines += [
        f"| schedule | seed | {' | '.join(f'last {size}' for size in sizes)} | result |",
        "|---|---|" + "---|" * (len(sizes) + 1),
    ]
    for run in runs:
        losses = " | ".join(f"{(one + other) / 2:.4f}" for _, one, other in run["windows"])
        found = Choice([Window(*window) for window in run["windows"]]).sentence()
        lines.append(f"| {run['schedule']} | {run['seed']} | {losses} | {found} |")
    lines += [
        "",
        "Columns are the mean loss on both halves of the samples; the first is the newest "
        "checkpoint alone.",
        "",
        f"Cost of the running average, `demo_12m` in one thread: an update takes "
        f"{cost['update_seconds'] * 1e3:.1f} ms of CPU time, and a step of "
        f"{cost['step_tokens']:,} tokens {cost['step_seconds']:.2f} s. With `ema.every_steps=10`, "
        f"that is {cost['share_every_10_steps']:.3%} of a step.",
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
