"""Compares the held-out loss after equal wall-clock time: Headwater, and what else one could use.

All sides train on the same documents with the same tokenizer, about the same number of parameters,
and the same processors, for the same time from the start of the process to its saved weights. A
short run of each side tells how many steps fit, so that each one's schedule ends with the time. One
evaluator, `eval perplexity`, then scores all in float32 in stock transformers, on the same held-out
text, in bits per byte. Sides take turns, one seed after another.

    python benchmarks/loss_at_equal_time.py --data data/python_docs [--minutes 4] [--seeds 3]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
import numpy as np

from benchmarks.equal_time.ours import settings_of, stretched
from benchmarks.equal_time.work import SEQ
from benchmarks.figures import write_results
from benchmarks.machine import described, machine
from benchmarks.sides import interpreter
from conf.machine import fitting_precision, processor
from data_pipeline.store.corpus import open_corpus, open_stream
from model.flops import parameters

ROOT = Path(__file__).parents[1]
RESULTS = Path("benchmarks/results/loss_at_equal_time.json")
TRIAL_STEPS = 12


@dataclass(frozen=True)
class Side:
    """A trainer: a module of `benchmarks.equal_time` with flags, or overrides of `pretrain`."""

    package: str
    module: str = ""
    flags: tuple[str, ...] = ()
    overrides: tuple[str, ...] = ()


OURS = ("model=demo_12m", "recipe=demo")
BEFORE = (
    *("recipe.global_batch_tokens=4096", "optim.learning_rate=2e-3"),
    "optim.min_learning_rate=2e-4",
)
"""The defaults of the demo before docs/studies/demo.md."""
QK_NORM = ("model.architecture=qwen3", "model.qk_norm=true")
SIDES = {
    "ours": Side("ours", overrides=(*OURS, "optim=muon_demo")),
    "ours, before the study": Side("ours", overrides=(*OURS, "optim=muon_demo", *BEFORE)),
    "ours, QK-norm": Side("ours", overrides=(*OURS, "optim=muon_demo", *QK_NORM)),
    "ours, AdamW": Side("ours", overrides=(*OURS, "optim=adamw_demo")),
    "transformers.Trainer": Side("transformers", "trainer"),
    "transformers.Trainer, our rate": Side("transformers", "trainer", ("--tuned",)),
    "litgpt": Side("litgpt", "litgpt_pretrain"),
    "nanoGPT style": Side("transformers", "nanogpt"),
}


@dataclass(frozen=True)
class Run:
    """Result of a run of a side. `seconds` are those of the whole process."""

    seconds: float
    parameters: int
    tokens: int
    step_seconds: float


def main() -> None:
    """Trains all sides with all seeds, and writes their table after each turn."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="the demo's corpus, tokenized")
    parser.add_argument("--minutes", type=float, default=4.0, help="of each run")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--sides", default=";".join(SIDES))
    parser.add_argument("--held-out-tokens", type=int, default=65_536, help="per source")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    options.precision = fitting_precision(processor("cpu"))
    budget = 60 * options.minutes
    names = options.sides.split(";")
    left_out = [name for name in names if python_of(SIDES[name]) is None]
    figures: dict[str, Any] = {
        "machine": machine(),
        "processors": processors(),
        "precision": options.precision,
        "budget_seconds": budget,
        "left_out": left_out,
        "runs": [],
    }
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_stream(options.data, folder / "stream.npy")
        steps = {
            name: steps_within(budget, trained(name, TRIAL_STEPS, 0, folder / "trial", options)[0])
            for name in names
            if name not in left_out
        }
        for seed in range(options.seeds):
            for name in steps:
                run, exported = trained(name, steps[name], seed, folder / f"run_{seed}", options)
                scores = scored(exported, options)
                figures["runs"].append({"side": name, "seed": seed, **vars(run), **scores})
                write_results(options.out, figures, table(figures))


def processors() -> int:
    """Returns the number of processors that this process and its children may use."""
    return len(os.sched_getaffinity(0))


def python_of(side: Side) -> str | None:
    """Returns the Python that has the side's package, or None."""
    return sys.executable if side.package == "ours" else interpreter(side.package)


def write_stream(data: str, path: Path) -> None:
    """Writes the training documents of all sources, shuffled, as one row of ids."""
    manifest = open_corpus(data)
    documents = []
    for source in manifest.source_tokens("train"):
        stream = open_stream(manifest, "train", source)
        row = np.empty((1, len(stream)), np.int64)
        stream.read(np.zeros(1, np.int64), row, np.zeros(1, np.int64))
        ids = row[0]
        ends = np.flatnonzero(ids == int(manifest.tokenizer["eos_id"])) + 1
        documents += [part for part in np.split(ids, ends) if len(part)]
    order = np.random.default_rng(0).permutation(len(documents))
    np.save(path, np.concatenate([documents[number] for number in order]).astype(np.uint16))


def steps_within(budget: float, trial: Run) -> int:
    """Returns the steps that fit, from the time of a short run's start and of its steps."""
    start = trial.seconds - TRIAL_STEPS * trial.step_seconds
    return max(TRIAL_STEPS, int((budget - start) / trial.step_seconds))


def trained(
    name: str, steps: int, seed: int, folder: Path, options: argparse.Namespace
) -> tuple[Run, Path]:
    """Runs a side, and returns its figures and the folder with its weights."""
    side = SIDES[name]
    out = folder / name.replace(" ", "_").replace(",", "")
    out.mkdir(parents=True)
    print(f"{name}, seed {seed}, {steps} steps ...", flush=True)
    if side.module:
        return peer_run(side, steps, seed, out, options)
    return own_run(side, steps, seed, out, options)


def peer_run(
    side: Side, steps: int, seed: int, out: Path, options: argparse.Namespace
) -> tuple[Run, Path]:
    """Runs a peer, and completes its folder, or imports its checkpoint."""
    command = [str(python_of(side)), "-m", f"benchmarks.equal_time.{side.module}", *side.flags]
    command += ["--steps", str(steps), "--seed", str(seed), "--out", str(out)]
    command += ["--stream", str(out.parents[1] / "stream.npy"), "--precision", options.precision]
    eager = {"TORCHDYNAMO_DISABLE": "1"} if side.module == "litgpt_pretrain" else {}
    seconds = timed(command, out, eager)
    run = Run(seconds=seconds, **json.loads((out / "answer.json").read_text()))
    made = out
    if (out / "litgpt").exists():
        made = out / "imported"
        words = ["model", "import", f"path={out}/litgpt/final", f"out={made}"]
        subprocess.run(
            [sys.executable, "-m", *words], cwd=ROOT, check=True, stdout=subprocess.DEVNULL
        )
    tokenizer = open_corpus(options.data).tokenizer_path
    (made / "tokenizer.json").write_bytes(tokenizer.read_bytes())
    (made / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    return run, made


def own_run(
    side: Side, steps: int, seed: int, out: Path, options: argparse.Namespace
) -> tuple[Run, Path]:
    """Runs `pretrain`, in one process per processor, and exports its weights."""
    run_dir = out / "run"
    tokens = open_corpus(options.data).source_tokens("train")
    mixture = "{" + ",".join(f"{source}:{count}" for source, count in tokens.items()) + "}"
    start = [sys.executable]
    if processors() > 1:
        start += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processors()}"]
    overrides = [
        *side.overrides,
        *stretched(side.overrides, steps),
        # Of each source as much as there is, like the peers' stream.
        *(f"recipe.stages.{stage}.mixture={mixture}" for stage in ("short", "long")),
        *(f"data.folder={options.data}", f"run_dir={run_dir}", f"seed={seed}", "device=cpu"),
        *(f"precision={options.precision}", "logger=files", "report=false"),
        *("validation.every_steps=0", "checkpoint.every_steps=0", "validation.tokens=4096"),
    ]
    seconds = timed([*start, "-m", "pretrain", *overrides], out)
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    records = [line for line in lines if line["kind"] == "train"]
    exported = out / "export"
    with (out / "log.txt").open("a") as log:
        export = ["pretrain", "export", f"run={run_dir}", f"out={exported}"]
        subprocess.run([sys.executable, "-m", *export], cwd=ROOT, check=True, stdout=log)
    run = Run(
        seconds=seconds,
        parameters=parameters(settings_of(side.overrides).model),
        tokens=records[-1]["tokens"],
        step_seconds=statistics.median(record["step_seconds"] for record in records[2:]),
    )
    return run, exported


def timed(command: list[str], out: Path, variables: dict[str, str] | None = None) -> float:
    """Runs a command with its output in log.txt, and returns its wall-clock seconds."""
    began = time.perf_counter()
    with (out / "log.txt").open("w") as log:
        environment = os.environ | {"HF_HUB_OFFLINE": "1"} | (variables or {})
        done = subprocess.run(
            command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, env=environment, check=False
        )
    if done.returncode:
        print((out / "log.txt").read_text()[-3000:], file=sys.stderr)
        raise SystemExit(f"{command} ended with {done.returncode}")
    return time.perf_counter() - began


def scored(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Returns the bits per byte of a folder, per source and as the mean of all sources."""
    out = folder / "perplexity.json"
    command = [sys.executable, "-m", "eval", "perplexity", f"model={folder}"]
    command += [f"data={options.data}", f"seq_len={SEQ}", "dtype=float32", f"out={out}"]
    command += [f"tokens={options.held_out_tokens}", "device=cpu"]
    with contextlib.suppress(FileNotFoundError):
        out.unlink()
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    sources = json.loads(out.read_text())["sources"]
    bits = {source: entry["bits_per_byte"] for source, entry in sources.items()}
    return {"bits_per_byte": statistics.fmean(bits.values()), "sources": bits}


def table(figures: dict[str, Any]) -> str:
    """Returns the results as Markdown."""
    runs = figures["runs"]
    sources = list(runs[0]["sources"])
    lines = [
        "# Held-out loss after equal time",
        "",
        f"`python benchmarks/loss_at_equal_time.py`: {figures['budget_seconds'] / 60:g} minutes "
        f"per run on {figures['processors']} processor(s), {figures['precision']}. "
        f"{described(figures['machine'])}. Bits per byte of held-out text, mean of the sources; "
        "± is the standard deviation over seeds.",
        "",
        f"| side | bits per byte | {' | '.join(sources)} | seeds | parameters | tokens | seconds |",
        f"|---|---|{'---|' * len(sources)}---|---|---|---|",
    ]
    for name in dict.fromkeys(run["side"] for run in runs):
        own = [run for run in runs if run["side"] == name]
        bits = [run["bits_per_byte"] for run in own]
        spread = f" ± {statistics.stdev(bits):.3f}" if len(bits) > 1 else ""
        cells = [f"{statistics.fmean(bits):.3f}{spread}"]
        cells += [f"{statistics.fmean(run['sources'][s] for run in own):.3f}" for s in sources]
        cells += [str(len(own)), f"{own[0]['parameters'] / 1e6:.2f}M"]
        cells += [f"{own[0]['tokens']:,}"]
        cells += [f"{statistics.fmean(run['seconds'] for run in own):.0f}"]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    if figures["left_out"]:
        lines += ["", f"Not installed here: {', '.join(figures['left_out'])} (`make peers`)."]
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    main()
