"""Kills jobs of a preparation at random moments of every phase, and compares what they wrote.

The reference is one process that is left alone. Then an array of jobs shares the same work: it is
submitted again and again until the corpus is complete, and in every phase some of its jobs are
killed (SIGKILL to all of their processes). Both folders must have the same bytes. With `--slurm`,
the jobs are a job array of SLURM (`sbatch` must be on the path); otherwise processes of this
machine.

    python benchmarks/preparation_kills.py [--slurm] [--units 20000] [--jobs 4] [--folder DIR]
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks.figures import write_results
from benchmarks.machine import described, machine
from data_pipeline.dedup.matching import DedupPlan
from data_pipeline.dedup.paragraphs import ParagraphPlan

ROOT = Path(__file__).parents[1]
PHASES = ("scan", "match", "merge", "settle", "paragraphs", "count", "collect", "prepare", "encode")
MANIFEST = "manifest"
"""The work after the last phase, which one job does."""
ALONE = ("settle", "prepare", MANIFEST)
"""Phases with the work of one job, that of rank 0."""
WORDS = [a + b + c for a in "bdfgklmn" for b in "aeiou" for c in "bdglnrst"]
UNIT_CHARS = 3000
POLL_SECONDS = 0.02
SLURM_SECONDS = 0.5
"""Time between two questions to SLURM."""


class Jobs(Protocol):
    """Jobs that share a preparation."""

    def submit(self) -> None:
        """Starts all jobs."""

    def running(self) -> list[str]:
        """Returns the jobs that run, by name."""

    def pending(self) -> bool:
        """Returns True until all jobs have ended."""

    def kill(self, job: str) -> bool:
        """Kills all processes of a job, and returns True if it was still running."""


class LocalJobs:
    """Processes of this machine, each in a session of its own."""

    def __init__(self, command: list[str], count: int, log: Path) -> None:
        self.command, self.count, self.log = command, count, log
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    def submit(self) -> None:
        """Starts all jobs."""
        for rank in range(self.count):
            with self.log.open("ab") as log:
                self.processes[str(rank)] = subprocess.Popen(
                    [*self.command, f"rank={rank}", f"world={self.count}"],
                    cwd=ROOT,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )

    def running(self) -> list[str]:
        """Returns the jobs that run, by name."""
        return [name for name, process in self.processes.items() if process.poll() is None]

    def pending(self) -> bool:
        """Returns True until all jobs have ended."""
        return bool(self.running())

    def kill(self, job: str) -> bool:
        """Kills all processes of a job, and returns True if it was still running."""
        process = self.processes[job]
        if process.poll() is not None:
            return False
        os.killpg(process.pid, signal.SIGKILL)
        return process.wait() == -signal.SIGKILL


class SlurmJobs:
    """A job array of SLURM."""

    def __init__(self, command: list[str], count: int, log: Path) -> None:
        self.count, self.log, self.id = count, log, ""
        quoted = " ".join(f"'{part}'" for part in command)
        self.script = log.with_suffix(".sbatch")
        lines = ["#!/bin/bash", f"cd '{ROOT}'", f"renice -n {os.nice(0)} -p $$", f"exec {quoted}"]
        self.script.write_text("\n".join([*lines, ""]))
        self.nodes: set[str] = set()
        self._asked = 0.0

    def submit(self) -> None:
        """Starts all jobs."""
        options = [f"--array=0-{self.count - 1}", "--cpus-per-task=1", "--open-mode=append"]
        options += ["--parsable", f"--output={self.log}", "--export=ALL", "--no-requeue"]
        self.id = _output("sbatch", *options, str(self.script)).split(";")[0]

    def running(self) -> list[str]:
        """Returns the jobs that run, by name."""
        lines = _output("squeue", "-h", "-r", "-j", self.id, "-t", "R", "-o", "%i %N").splitlines()
        self.nodes |= {line.split()[1] for line in lines}
        return [line.split()[0] for line in lines]

    def pending(self) -> bool:
        """Returns True until all jobs have ended."""
        if time.monotonic() < self._asked + SLURM_SECONDS:
            return True
        self._asked = time.monotonic()
        return bool(_output("squeue", "-h", "-r", "-j", self.id, "-o", "%i"))

    def kill(self, job: str) -> bool:
        """Kills all processes of a job, and returns True if it was still running."""
        done = subprocess.run(
            ["scancel", "--full", "--signal=KILL", job], capture_output=True, check=False
        )
        while job in self.running():
            time.sleep(POLL_SECONDS)
        state = _output("scontrol", "show", "job", "-o", job)
        return done.returncode == 0 and "JobState=COMPLETED" not in state


def _output(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode and "Invalid job id" not in done.stderr:
        raise SystemExit(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout.strip()


class Progress:
    """Reads from a work folder how far a preparation is."""

    def __init__(self, out: Path, units: int) -> None:
        self.out = out
        self.work = out.with_name(out.name + ".partial")
        self.units = units
        self._complete = 0

    def phase(self) -> tuple[str, float]:
        """Returns the first phase that is not complete, and the share of its tasks that is done."""
        for phase in PHASES[self._complete :]:
            tasks = self._tasks(phase)
            folder = self.work / phase
            names = os.listdir(folder) if folder.is_dir() else []
            done = sum(name.endswith(".json") and name[0].isdigit() for name in names)
            if tasks is None or done < tasks:
                return phase, done / tasks if tasks else 0.0
            self._complete += 1
        return MANIFEST, 0.0

    def _tasks(self, phase: str) -> int | None:
        """Returns the number of tasks of a phase, or None if it is not known yet."""
        if phase in ("scan", "paragraphs", "encode"):
            return self.units
        if phase in ("settle", "prepare"):
            return 1
        kind: Any = DedupPlan if phase in ("match", "merge") else ParagraphPlan
        path = self.work / ("dedup.json" if kind is DedupPlan else "paragraphs.json")
        if not path.is_file():
            return None
        plan = kind(**json.loads(path.read_text()))
        tasks: int = plan.parts if phase == "count" else getattr(plan, f"{phase}_tasks")
        return tasks


def make_texts(folder: Path, units: int, seed: int) -> None:
    """Writes half of the units as files of their own, and half as one file of JSON lines."""
    draw = random.Random(seed)
    folder.mkdir(parents=True)
    boilerplate = [_sentence(draw) for _ in range(40)]
    earlier: list[dict[str, str]] = []

    def row(number: int) -> str:
        if earlier and draw.random() < 0.25:
            found = dict(draw.choice(earlier))
            kind = draw.random()
            if kind < 0.3:  # the same text under another URL
                found["url"] = f"https://copy.example/{number}"
            elif kind < 0.6:  # the same URL with another text
                found["text"] = "\n".join(_sentence(draw) for _ in range(6))
            elif kind < 0.9:  # nearly the same text under another URL
                words = found["text"].split(" ")
                words[draw.randrange(len(words))] = draw.choice(WORDS)
                found |= {"text": " ".join(words), "url": f"https://near.example/{number}"}
        else:
            lines = [_sentence(draw) for _ in range(6)]
            lines[draw.randrange(6)] = draw.choice(boilerplate)
            host = draw.choice(("a.example", "b.example", "blocked.example"))
            found = {"text": "\n".join(lines), "url": f"http://{host}/{number}"}
            earlier.append(found)
            if len(earlier) > 5000:
                earlier.pop(draw.randrange(len(earlier)))
        return json.dumps(found) + "\n"

    number = 0

    def unit() -> str:
        nonlocal number
        lines, size = [], 0
        while size < UNIT_CHARS:
            lines.append(row(number))
            number += 1
            size += len(lines[-1])
        return "".join(lines)

    for file in range(units // 2):
        path = folder / "files" / f"{file % 100:02}" / f"{file:06}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(unit())
    with (folder / "large.jsonl").open("w") as large:
        for _ in range(units - units // 2):
            large.write(unit())
    (folder / "blocked.txt").write_text("blocked.example\n")


def _sentence(draw: random.Random) -> str:
    return " ".join(draw.choices(WORDS, k=24)) + "."


def command(texts: Path, out: Path, task_bytes: int) -> list[str]:
    """Returns the command that prepares the texts."""
    return [
        *(sys.executable, "-m", "data_pipeline", "tokenize", "corpus=jsonl", f"out={out}"),
        *("workers=1", "tokenizer.vocab_size=1000", "tokenizer.train_bytes=2_000_000"),
        f"corpus.shard_bytes={UNIT_CHARS}",
        f"corpus.sources.web.paths=[{texts}/files,{texts}/large.jsonl]",
        "corpus.sources.web.url_field=url",
        "corpus.cleaning.steps=[url_blocklist,pii]",
        f"corpus.cleaning.url_blocklist.files=[{texts}/blocked.txt]",
        "corpus.cleaning.dedup.minhash=true",
        "corpus.cleaning.dedup.url=true",
        "corpus.cleaning.dedup.paragraphs=true",
        "corpus.cleaning.dedup.paragraph_min_chars=60",
        f"corpus.cleaning.dedup.task_bytes={task_bytes}",
    ]


def digest_of(folder: Path) -> tuple[str, int]:
    """Returns a digest of the names and contents of all files of a folder, and their number."""
    digest, count = hashlib.sha256(), 0
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        with path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
        digest.update(f"{path.relative_to(folder)} {content}\n".encode())
        count += 1
    return digest.hexdigest(), count


def run_with_kills(
    jobs: Jobs, progress: Progress, kills: int, seed: int, log: Path
) -> dict[str, Any]:
    """Submits the jobs until the output is complete, and kills some of them in every phase.

    Phases of many tasks are killed after random shares of these, the others after random times.
    """
    draw = random.Random(seed)
    plan = {
        phase: sorted(draw.uniform(0.0, 0.95) for _ in range(kills))
        for phase in (*PHASES, MANIFEST)
    }
    counted: Counter[str] = Counter()
    seconds: defaultdict[str, float] = defaultdict(float)
    rounds, started, entered = 0, time.monotonic(), {"": 0.0}
    while not progress.out.exists():
        rounds += 1
        if rounds > 30 + 3 * kills * len(plan):
            raise SystemExit(f"The preparation does not end. See {log}.")
        jobs.submit()
        before = time.monotonic()
        while jobs.pending():
            phase, share = progress.phase()
            now = time.monotonic()
            seconds[phase] += now - before
            before = now
            since = now - entered.setdefault(phase, now)
            # Work of one job has no share that is done: up to 2 seconds after its start instead.
            reached = since / 2 if phase in ALONE else share
            if plan[phase] and reached >= plan[phase][0]:
                alive = jobs.running()
                if phase in ALONE:
                    alive = [job for job in alive if job.endswith("0")]
                if alive:
                    plan[phase].pop(0)
                    entered.pop(phase)
                    counted[phase] += jobs.kill(draw.choice(alive))
            time.sleep(POLL_SECONDS)
    return {
        "submissions": rounds,
        "kills": {phase: counted[phase] for phase in (*PHASES, MANIFEST)},
        "wall_seconds": time.monotonic() - started,
        "seconds_of_phases": {phase: seconds[phase] for phase in (*PHASES, MANIFEST)},
    }


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Returns the figures of both preparations."""
    texts, whole, out = folder / "texts", folder / "whole", folder / "killed"
    if not texts.is_dir():
        make_texts(texts, options.units, options.seed)
    log = folder / "jobs.log"
    figures: dict[str, Any] = {"units": _units(texts), "jobs": options.jobs}
    started = time.monotonic()
    with (folder / "whole.log").open("wb") as said:
        alone = subprocess.Popen(command(texts, whole, 2**31), cwd=ROOT, stdout=said, stderr=said)
    if not options.together:
        alone.wait()
        figures["wall_seconds_of_one_process"] = time.monotonic() - started
    kind = SlurmJobs if options.slurm else LocalJobs
    jobs: Any = kind(command(texts, out, options.task_bytes), options.jobs, log)
    progress = Progress(out, figures["units"])
    figures["by"] = "a job array of SLURM" if options.slurm else "processes of one machine"
    figures |= run_with_kills(jobs, progress, options.kills, options.seed, log)
    if options.slurm:
        figures["nodes"] = sorted(jobs.nodes)
    if alone.wait():
        raise SystemExit(f"The process that is left alone failed. See {folder / 'whole.log'}.")
    digests = {"one process": digest_of(whole), "killed jobs": digest_of(out)}
    figures["sha256_of_all_files"] = {name: digest for name, (digest, _) in digests.items()}
    figures["files"] = digests["one process"][1]
    figures["same_bytes"] = len({digest for digest, _ in digests.values()}) == 1
    figures["dropped"] = {
        key: value
        for source in json.loads((out / "manifest.json").read_text())["sources"].values()
        for key, value in source.items()
    }
    return figures


def _units(texts: Path) -> int:
    size = (texts / "large.jsonl").stat().st_size
    files = sum(1 for _ in (texts / "files").rglob("*.jsonl"))
    return files + max(1, round(size / UNIT_CHARS))


def table_of(figures: dict[str, Any]) -> Iterator[str]:
    """Yields the lines of the figures as Markdown."""
    yield str(__doc__).split("\n\n")[0] + f" {described(figures['machine'])}."
    yield ""
    alone = figures.get("wall_seconds_of_one_process")
    yield (
        f"{figures['units']:,} units by {figures['jobs']} jobs ({figures['by']}"
        + (f" on {len(figures['nodes'])} nodes" if "nodes" in figures else "")
        + f"), submitted {figures['submissions']} times in {figures['wall_seconds']:.0f} s"
        + (f"; one process takes {alone:.0f} s." if alone else ".")
    )
    yield ""
    yield "| phase | jobs killed | seconds of the array |"
    yield "|---|---|---|"
    for phase, count in figures["kills"].items():
        yield f"| {phase} | {count} | {figures['seconds_of_phases'][phase]:.0f} |"
    yield ""
    same = "identical" if figures["same_bytes"] else "DIFFERENT"
    yield f"The {figures['files']:,} files of both folders are {same}. sha256 of all of them:"
    yield ""
    for name, digest in figures["sha256_of_all_files"].items():
        yield f"- {name}: `{digest}`"


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--units", type=int, default=20_000)
    parser.add_argument("--jobs", type=int, default=4)
    parser.add_argument("--kills", type=int, default=3, help="jobs killed per phase")
    parser.add_argument("--task-bytes", type=int, default=8_000_000)
    parser.add_argument("--together", action="store_true", help="runs both at the same time")
    parser.add_argument("--slurm", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="keeps the texts and both outputs")
    out = ROOT / "benchmarks" / "results" / "preparation_kills.json"
    parser.add_argument("--out", type=Path, default=out)
    options = parser.parse_args()
    folder = options.folder or Path(tempfile.mkdtemp(prefix="preparation-"))
    folder.mkdir(parents=True, exist_ok=True)
    figures = {"machine": machine(), **measure(options, folder.resolve())}
    write_results(options.out, figures, "\n".join(table_of(figures)) + "\n")
    if not figures["same_bytes"]:
        raise SystemExit(1)
    if options.folder is None:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
