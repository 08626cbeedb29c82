"""Measures the time from the command to the end of the first step, by part.

It is measured for a fresh start of `python -m pretrain` on a small corpus, and for the same command
after a stop, which loads a checkpoint. The parts end when the run prints a line or when a module is
imported: imports until the trainer can start, the preparation of the run (config, data, layout,
weights or checkpoint), and the first step.

    python benchmarks/start_up.py [--repeats 5]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks.figures import write_results
from benchmarks.machine import machine
from tests.corpora import make_corpus
from tests.runs import arguments

ROOT = Path(__file__).parents[1]
MARKED = """
import json, os, sys, time
began = float(os.environ["BEGAN"])
moments = {"interpreter": time.time() - began}
import torch
moments["torch"] = time.time() - began
import pretrain.train
from pretrain.trainer import Trainer
moments["imports"] = time.time() - began
prepare, train_step = pretrain.train.prepare, Trainer.train_step
def prepared(config, processes):
    moments["config, process group"] = time.time() - began
    run = prepare(config, processes)
    moments["data, model, weights"] = time.time() - began
    return run
def stepped(trainer):
    if "hooks" not in moments:
        moments["hooks"] = time.time() - began
    pending = train_step(trainer)
    if "first step" not in moments:
        moments["first step"] = time.time() - began
        print("MOMENTS " + json.dumps(moments), file=sys.stderr, flush=True)
    return pending
pretrain.train.prepare, Trainer.train_step = prepared, stepped
from conf.entry import main
from pretrain.__main__ import COMMANDS
main("pretrain", COMMANDS, default="train")
"""


def main() -> None:
    """Starts, stops and restarts; prints medians of the parts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--model", default="small_15m")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/start_up.json"))
    options = parser.parse_args()
    found: dict[str, list[dict[str, float]]] = {"fresh": [], "resumed": []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_corpus(folder / "corpus")
        for number in range(options.repeats):
            run_dir = folder / f"run_{number}"
            for kind, stop in (("fresh", 6), ("resumed", 7)):
                found[kind].append(start(folder / "corpus", run_dir, options.model, stop))
    figures = {
        "machine": machine(),
        "model": options.model,
        **{
            kind: {part: median(s[part] for s in runs) for part in runs[0]}
            for kind, runs in found.items()
        },
        "seconds_to_first_step": {
            kind: median(sum(s.values()) for s in runs) for kind, runs in found.items()
        },
    }
    write_results(options.out, figures)


def start(corpus: Path, run_dir: Path, model: str, stop: int) -> dict[str, float]:
    """Returns the seconds of each part of a start that ends after step `stop`."""
    settings = arguments(corpus, run_dir, stop_after=stop, validation__every_steps=0)[1:]
    kept = [s for s in settings if not s.startswith(("model", "precision"))]
    command = [sys.executable, "-c", MARKED, f"model={model}", *kept, "precision=auto"]
    environment = os.environ | {"BEGAN": str(time.time())}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    line = next((s for s in done.stderr.splitlines() if s.startswith("MOMENTS ")), None)
    if line is None:
        raise RuntimeError(done.stderr)
    moments = json.loads(line.removeprefix("MOMENTS "))
    between = pairwise([0.0, *moments.values()])
    return {part: end - before for part, (before, end) in zip(moments, between, strict=True)}


if __name__ == "__main__":
    main()
