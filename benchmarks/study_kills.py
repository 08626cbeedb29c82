"""Kills a study of eight runs and its runs at random moments, and compares its table.

The reference is a study that is left alone, at the same time. The other one is started again after
each kill, until all runs have ended. A kill (SIGKILL) hits either the process of the study or one
of its runs. With `--slurm`, every run is a job (`sbatch` must be on the path), and a kill hits the
study, a rank of a job, or cancels a job. Both tables must have the same bytes.

    python benchmarks/study_kills.py [--slurm] [--kills 10] [--folder DIR]
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks.figures import write_results
from benchmarks.machine import machine

ROOT = Path(__file__).parents[1]
STUDY = ["study=grid", "study.vary=['optim.learning_rate=0.003,0.01']"]
BUDGETS = "study.budgets=[16384,24576,32768]"
"""Two rates, each with a trunk and three branches: eight runs."""
RUN = [
    *("device=cpu", "precision=fp32", "logger=files", "report=false", "model=demo_12m"),
    *("model.vocab_size=259", "model.hidden_size=64", "model.intermediate_size=96"),
    *("model.num_layers=2", "model.sliding_window=24", "model.max_seq_len=64", "recipe=demo"),
    *("~recipe.stages.long", "recipe.global_batch_tokens=1024", "recipe.stages.short.seq_len=64"),
    *("recipe.stages.short.tokens=32768", "optim=adamw_demo", "optim.warmup_tokens=4096"),
    *("parallel.micro_batch_tokens=1024", "parallel.compile=false", "validation.tokens=2048"),
    *("validation.every_steps=8", "checkpoint.every_steps=4"),
]
CLUSTER = """\
name: lab
gpu: CPU
device: cpu
gpus_per_node: 1
gpu_memory_gib: 8
bf16_tflops: 0
fp32_tflops: 0.1
memory_gb_s: 20
intra_node_gb_s: 5
inter_node_gb_s: 1
slurm:
  cpus_per_task: 1
  gpus: none
  time: "60"
  python: {python}
  env: {{OMP_NUM_THREADS: "1"}}
"""
LIMIT_SECONDS = 3600.0
POLL_SECONDS = 0.5


class Attempts:
    """Starts the study as often as necessary.

    Args:
        out: Folder of the study.
        options: Keys of `launch study`.
        corpus: Folder of the corpus.
    """

    def __init__(self, out: Path, options: list[str], corpus: Path) -> None:
        self.out = out
        self.words = [sys.executable, "-m", "launch", "study", *STUDY, BUDGETS, f"out={out}"]
        self.words += [*options, "--", *RUN, f"data.folder={corpus}"]
        self.starts = 0
        self.on_slurm = "on=slurm" in options
        self.own = f"run_dir={out}/".encode()
        self.process = self.start()

    def start(self) -> subprocess.Popen[bytes]:
        """Starts the study, with its output in a file next to its folder."""
        self.starts += 1
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        with Path(f"{self.out}.log").open("ab") as log:
            return subprocess.Popen(
                self.words, stdout=log, stderr=subprocess.STDOUT, env=environment, cwd=ROOT
            )

    def keep_running(self) -> bool:
        """Starts the study again if it was killed; returns False if it has ended by itself."""
        code = self.process.poll()
        if code is not None and code in (-signal.SIGKILL, 85):
            self.process = self.start()
        return code in (None, -signal.SIGKILL, 85)

    def ranks(self) -> list[int]:
        """Returns the first processes of the runs that the study or its jobs have started."""
        found = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            words = words_of(path)
            if not (b"pretrain" in words and any(w.startswith(self.own) for w in words)):
                continue
            above = parent_of(path.parent)
            starter = words_of(Path(f"/proc/{above}/cmdline"))
            in_job = b"torch.distributed.run" in starter
            if in_job if self.on_slurm else above == self.process.pid:
                found.append(int(path.parent.name))
        return found

    def jobs(self) -> list[str]:
        """Returns the numbers of all jobs of the study that run."""
        numbers = [
            json.loads(line)["job"]
            for path in self.out.glob("runs/*/slurm/jobs.jsonl")
            for line in path.read_text().splitlines()
        ]
        if not numbers:
            return []
        asked = ["squeue", "-h", "-t", "RUNNING", "-o", "%A", "-j", ",".join(numbers)]
        return subprocess.run(asked, capture_output=True, text=True).stdout.split()

    def kill(self, draw: random.Random, slurm: bool) -> str | None:
        """Kills something that runs, and returns what it was."""
        ranks = self.ranks()
        if not ranks or self.process.poll() is not None:
            return None
        what = draw.choice(["study", "rank", "job"] if slurm else ["study", "rank"])
        targets: list[Any] = [self.process.pid] if what == "study" else ranks
        if what == "job":
            targets = self.jobs()
        if not targets:
            return None
        target = draw.choice(targets)
        if what == "job":
            subprocess.run(["scancel", target], check=True)
            return what
        try:
            os.kill(target, signal.SIGKILL)
        except ProcessLookupError:
            return None
        return what


def words_of(path: Path) -> list[bytes]:
    """Returns the words of a command line in /proc, or [] if the process has ended."""
    try:
        return path.read_bytes().split(b"\0")
    except OSError:
        return []


def parent_of(folder: Path) -> int | None:
    """Returns the parent of a process in /proc, or None if it has ended."""
    try:
        return int((folder / "stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return None


def finish(attempts: Attempts, draw: random.Random, kills: int, slurm: bool) -> dict[str, Any]:
    """Lets a study end, with a number of kills, and returns what happened."""
    began = time.monotonic()
    killed: Counter[str] = Counter()
    pause = draw.uniform(2, 40)
    while attempts.keep_running():
        time.sleep(POLL_SECONDS)
        pause -= POLL_SECONDS
        if pause <= 0 and sum(killed.values()) < kills:
            hit = attempts.kill(draw, slurm)
            killed.update([hit] if hit else [])
            pause = draw.uniform(2, 40) if hit else 1.0
        if time.monotonic() - began > LIMIT_SECONDS:
            attempts.process.terminate()
            raise SystemExit(f"{attempts.out}: the study has not ended after {LIMIT_SECONDS} s.")
    return {
        "exit_code": attempts.process.returncode,
        "seconds": round(time.monotonic() - began, 1),
        "starts_of_the_study": attempts.starts,
        "kills": dict(sorted(killed.items())),
    }


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Runs both studies and compares their tables."""
    from tests.corpora import make_corpus

    corpus = folder / "corpus"
    if not corpus.is_dir():
        make_corpus(corpus)
    jobs = ["max_jobs=2"]
    alone = Attempts(folder / "alone", jobs, corpus)
    keys = list(jobs)
    if options.slurm:
        (folder / "lab.yaml").write_text(CLUSTER.format(python=sys.executable))
        keys += ["on=slurm", f"cluster={folder / 'lab.yaml'}", "node_check=false"]
    name = "slurm" if options.slurm else "killed"
    draw = random.Random(options.seed)
    ended = finish(Attempts(folder / name, keys, corpus), draw, options.kills, options.slurm)
    finish(alone, draw, 0, False)
    tables = [(folder / one / "table.csv").read_bytes() for one in ("alone", name)]
    runs = json.loads((folder / name / "results.json").read_text())
    return {
        "runs": len(runs),
        "runs_with_a_result": sum(run["result"] is not None for run in runs.values()),
        "branches": sum(run["trunk"] is not None for run in runs.values()),
        **ended,
        "same_table": tables[0] == tables[1],
    }


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--slurm", action="store_true")
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="keeps both studies")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    folder = options.folder or Path(tempfile.mkdtemp(prefix="study-"))
    folder.mkdir(parents=True, exist_ok=True)
    figures = {"machine": machine(), **measure(options, folder.resolve())}
    name = "study_kills_slurm.json" if options.slurm else "study_kills.json"
    write_results(options.out or ROOT / "benchmarks" / "results" / name, figures)
    if not figures["same_table"]:
        raise SystemExit(1)
    if options.folder is None:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
