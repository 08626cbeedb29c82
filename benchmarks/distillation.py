"""Distillation of a 3M student from a 12M teacher, compared with cross-entropy alone.

A teacher is trained first. Students of three kinds start with the same weights and read the same
tokens, for each seed: with cross-entropy alone, next to the teacher, and from a cache of the
teacher's answers. Differences of their held-out losses are those of pairs. Then two steps of each
kind are repeated with torch's allocations recorded, and their peak is compared with the memory
plan. Runs take turns, so that other work on the machine disturbs all kinds alike.

    python benchmarks/distillation.py [--data data/python_docs] [--seeds 3] [--tokens 401408]
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

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.figures import write_results  # noqa: E402
from benchmarks.machine import described, machine  # noqa: E402

RESULTS = Path("benchmarks/results/distillation.json")
SEQ, BATCH, MICRO_BATCH = 256, 4096, 2048
TOP_K = 64
KINDS = ("cross-entropy", "distillation", "cached")


def main() -> None:
    """Trains the teacher and the students, and writes their figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="data/python_docs")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=401_408, help="tokens of each student")
    parser.add_argument("--teacher-tokens", type=int, default=802_816)
    parser.add_argument("--teacher", type=Path, help="a run to learn from, instead of a new one")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--memory", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory:
        print(json.dumps(memory(options.memory)))
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        common = [f"data.folder={options.data}", "device=cpu", "report=false"]
        teacher = options.teacher or folder / "teacher"
        if options.teacher is None:
            train(teacher, ["model=demo_12m", *recipe(options.teacher_tokens), *common])
        student = ["model=demo_3m", *recipe(options.tokens), *common]
        kinds = {kind: keys_of(kind, teacher, folder / "answers_0") for kind in KINDS}
        runs: dict[str, list[Path]] = {kind: [] for kind in KINDS}
        caches: list[dict[str, float]] = []
        for seed in range(options.seeds):
            answers = folder / f"answers_{seed}"
            caches.append(teach(teacher, options.data, answers, seed, options.tokens))
            for kind in KINDS:
                run_dir = folder / f"{kind}_{seed}"
                train(run_dir, [*student, *keys_of(kind, teacher, answers), f"seed={seed}"])
                runs[kind].append(run_dir)
        figures: dict[str, Any] = {
            "machine": machine(),
            "tokens": {
                "student": options.tokens,
                "teacher": records(teacher, "train")[-1]["tokens"],
            },
            "teacher_loss": records(teacher, "train")[-1]["loss"],
            "students": {kind: figures_of(found) for kind, found in runs.items()},
            "caches": caches,
        }
        losses = [figures["students"][kind]["held_out_loss"] for kind in KINDS]
        figures["differences"] = {
            kind: difference(losses[0], found)
            for kind, found in zip(KINDS[1:], losses[1:], strict=True)
        }
        figures["memory"] = {
            kind: measured(folder / f"memory_{n}", [*student, *keys, "seed=0"])
            for n, (kind, keys) in enumerate(kinds.items())
        }
    write_results(options.out, figures, table(figures))


def keys_of(kind: str, teacher: Path, answers: Path) -> list[str]:
    """Returns the keys of a kind of student."""
    if kind == "cross-entropy":
        return []
    if kind == "distillation":
        return ["objective=distill", f"objective.teacher={teacher}"]
    return ["objective=distill", f"objective.teacher_cache={answers}"]


def teach(teacher: Path, data: str, out: Path, seed: int, tokens: int) -> dict[str, float]:
    """Runs `python -m pretrain teach`, and returns its seconds and bytes per token."""
    print(f"{out.name} ...", flush=True)
    keys = [key for key in recipe(tokens) if key.startswith(("recipe", "~recipe"))]
    command = [sys.executable, "-m", "pretrain", "teach", f"model={teacher}", f"data={data}"]
    command += [*keys, f"seed={seed}", f"top_k={TOP_K}", f"out={out}", "device=cpu"]
    started = time.monotonic()
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    seconds = time.monotonic() - started
    size = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    return {"seconds": seconds, "bytes_per_token": size / tokens}


def difference(plain: list[float], taught: list[float]) -> dict[str, Any]:
    """Returns the differences of pairs of losses, their mean and its standard error."""
    pairs = [b - a for a, b in zip(plain, taught, strict=True)]
    error = statistics.stdev(pairs) / len(pairs) ** 0.5 if len(pairs) > 1 else 0.0
    return {"pairs": pairs, "mean": statistics.fmean(pairs), "standard_error": error}


def recipe(tokens: int) -> list[str]:
    """Returns the keys of a run of one kind of step, with its learning rate."""
    return [
        "recipe=demo",
        f"recipe.global_batch_tokens={BATCH}",
        f"recipe.stages.short.seq_len={SEQ}",
        f"recipe.stages.short.tokens={tokens}",
        "~recipe.stages.long",
        f"parallel.micro_batch_tokens={MICRO_BATCH}",
        "optim=adamw_demo",
        f"optim.warmup_tokens={tokens // 8}",
        "logger=files",
        "validation.every_steps=0",
        "validation.tokens=32768",
        "checkpoint.every_steps=0",
    ]


def train(run_dir: Path, keys: list[str]) -> None:
    """Runs `python -m pretrain`."""
    print(f"{run_dir.name} ...", flush=True)
    command = [sys.executable, "-m", "pretrain", *keys, f"run_dir={run_dir}", "name=bench"]
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)


def records(run_dir: Path, kind: str) -> list[dict[str, Any]]:
    """Returns the records of a kind in metrics.jsonl."""
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    return [record for record in map(json.loads, lines) if record["kind"] == kind]


def held_out(run_dir: Path) -> float:
    """Returns the last held-out loss of a run."""
    return records(run_dir, "validation")[-1]["loss"]


def figures_of(runs: list[Path]) -> dict[str, Any]:
    """Returns the losses and the times of runs of one kind."""
    steps = [record for run in runs for record in records(run, "train")[2:]]
    last = [records(run, "train")[-1] for run in runs]
    found: dict[str, Any] = {
        "held_out_loss": [held_out(run) for run in runs],
        "step_seconds": statistics.median(record["step_seconds"] for record in steps),
        "tokens_per_second": statistics.median(r["tokens_per_second"] for r in steps),
        "mfu": statistics.median(record["mfu"] for record in steps),
        "resident_peak_bytes": max(record["memory_peak_bytes"] for record in last),
    }
    for key in ("kl", "agreement"):
        if key in last[0]:
            found[key] = [record[key] for record in last]
    return found


def measured(run_dir: Path, keys: list[str]) -> dict[str, int]:
    """Returns the planned and the measured peak of two steps, from a process of its own."""
    overrides = [*keys, f"run_dir={run_dir}", "name=bench", "stop_after=2"]
    command = [sys.executable, __file__, "--memory", *overrides]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def memory(overrides: list[str]) -> dict[str, int]:
    """Returns the planned and the measured bytes of torch's allocations at the peak of a run."""
    import torch.distributed as dist
    from omegaconf import OmegaConf
    from torch.profiler import ProfilerActivity, profile

    from conf.overrides import compose_command, store_schema
    from pretrain.config import PretrainConfig
    from pretrain.health.bad_steps import BadSteps
    from pretrain.planning.layouts import Machine, fit, requirements_of
    from pretrain.planning.memory import Sizes
    from pretrain.processes import start
    from pretrain.setup import prepare
    from pretrain.trainer import Trainer

    store_schema("pretrain", PretrainConfig)
    config = OmegaConf.to_object(compose_command("pretrain", overrides))
    assert isinstance(config, PretrainConfig)
    processes = start("cpu")
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        run = prepare(config, processes)
        Trainer(config, processes, run, BadSteps(config.health, 1)).train()
    plan = run.plan
    planned = fit(requirements_of(config, plan), Sizes(), Machine(1, 1, 1 << 50, "cpu")).memory
    dist.destroy_process_group()
    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        recorded.export_chrome_trace(file.name)
        events = json.loads(Path(file.name).read_text())["traceEvents"]
    peak = max(e["args"]["Total Allocated"] for e in events if e["name"] == "[memory]")
    assert planned is not None
    return {"planned_bytes": planned.total, "measured_bytes": peak} | vars(planned)


def table(figures: dict[str, Any]) -> str:
    """Returns the results as Markdown."""
    students = figures["students"]
    tokens = figures["tokens"]
    lines = [
        f"A 3M student learns from a 12M teacher, in `python benchmarks/distillation.py`. "
        f"{described(figures['machine'])}.",
        "",
        f"The teacher read {tokens['teacher']:,} tokens of the demo's corpus; the loss of its last "
        f"step is {figures['teacher_loss']:.4f}. Each student read {tokens['student']:,} tokens.",
        "",
        "| | cross-entropy | next to the teacher | from a cache |",
        "|---|---|---|---|",
    ]

    def row(name: str, cells: list[str]) -> None:
        lines.append(f"| {name} | {' | '.join(cells)} |")

    for seed in range(len(students[KINDS[0]]["held_out_loss"])):
        cells = [f"{students[kind]['held_out_loss'][seed]:.4f}" for kind in KINDS]
        row(f"held-out loss, seed {seed}", cells)
    gains = [figures["differences"][kind] for kind in KINDS[1:]]
    row(
        "difference from cross-entropy, mean of the pairs",
        ["", *(f"{gain['mean']:+.4f} ± {gain['standard_error']:.4f}" for gain in gains)],
    )
    seconds = [students[kind]["step_seconds"] for kind in KINDS]
    row("step, s (median)", [f"{value:.3f} ({value / seconds[0]:.2f}x)" for value in seconds])
    cache = figures["caches"]
    row(
        "before it: `teach`, s (median), bytes per token",
        [
            "",
            "",
            f"{statistics.median(c['seconds'] for c in cache):.0f}, "
            f"{statistics.median(c['bytes_per_token'] for c in cache):.0f}",
        ],
    )
    sizes = [figures["memory"][kind] for kind in KINDS]
    for key, name in (("measured_bytes", "measured"), ("planned_bytes", "planned")):
        row(
            f"peak of torch's allocations, MB, {name}", [f"{size[key] / 1e6:.1f}" for size in sizes]
        )
    row("measured / planned", [f"{s['measured_bytes'] / s['planned_bytes']:.3f}" for s in sizes])
    peaks = [students[kind]["resident_peak_bytes"] / 1e6 for kind in KINDS]
    row("peak of the resident set, MB", [f"{peak:.0f}" for peak in peaks])
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    main()
