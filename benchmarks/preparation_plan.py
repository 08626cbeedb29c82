"""Compares what `data_pipeline plan` says of a preparation with what `tokenize` then takes.

Three corpora: that of the demo, made web pages of which 40% repeat others (exactly, with edits, or
as boilerplate), and 5,000 tiny files. CPU seconds are those of all processes.

    python benchmarks/preparation_plan.py [--folder DIR] [--only web] [--pages 60000]
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import random
import resource
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import zstandard

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks.figures import write_results
from benchmarks.machine import described, machine

ROOT = Path(__file__).parents[1]
FILES, TINY = 8, 5000
COPIES = 0.4
KEEP_WORK = (
    "import sys, data_pipeline.tokenizing.work as work\n"
    "from conf.entry import main\n"
    "from data_pipeline.__main__ import COMMANDS\n"
    "work.WorkFolder.remove = lambda self: None\n"
    "main('data_pipeline', COMMANDS)\n"
)
"""Runs a command as `python -m data_pipeline` does, but keeps the work folder."""
SUBREAPER = 36
"""The option of prctl by which the processes of a child that has ended become this one's."""


def main() -> None:
    """Plans and tokenizes each corpus, and writes the figures after each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, help="where to work")
    parser.add_argument("--only", nargs="+", default=["demo", "web", "tiny"])
    parser.add_argument("--pages", type=int, default=60_000, help="documents of the web corpus")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument(
        "--out", type=Path, default=Path("benchmarks/results/preparation_plan.json")
    )
    options = parser.parse_args()
    ctypes.CDLL(None).prctl(SUBREAPER, 1, 0, 0, 0)
    figures: dict[str, Any] = {"machine": machine(), "workers": options.workers, "corpora": {}}
    for name in options.only:
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            keys, shares = corpus_of(name, Path(folder), options.pages)
            measured = tokenize(keys, options.workers, Path(folder))
            figures["corpora"][name] = [
                compare(keys, share, options.workers, Path(folder), measured) for share in shares
            ]
        write_results(options.out, figures, table_of(figures))


def corpus_of(name: str, folder: Path, pages: int) -> tuple[list[str], list[float | None]]:
    """Returns the keys of a corpus, which is made if needed, and the shares to sample."""
    if name == "demo":
        return ["corpus=python_docs", "tokenizer=bpe_8k"], [None, 0.3]
    source = folder / "text"
    source.mkdir()
    if name == "web":
        make_pages(source, pages)
        paths = f"corpus.sources.web.paths=[{source}/*.jsonl.zst]"
        keys = ["corpus=web", paths, "corpus.shard_bytes=16_000_000", "tokenizer=bpe_8k"]
        return keys, [None, 0.05]
    make_files(source)
    keys = ["corpus=text_files", f"corpus.sources.text.paths=[{source}]", "tokenizer=bpe_8k"]
    return keys, [None, 0.2]


def make_pages(folder: Path, pages: int) -> None:
    """Writes pages of sentences of this Python's documentation, as compressed JSON lines."""
    sentences = [line for text in library((".py",)) for line in sentences_of(text)]
    boilerplate = [page_of(sentences, -number - 1) for number in range(pages // 500)]
    files: list[list[str]] = [[] for _ in range(FILES)]
    for number in range(pages):
        draw = random.Random(number)
        kind = draw.random()
        if kind < COPIES / 4:
            text = draw.choice(boilerplate)
        elif kind < COPIES:
            text = page_of(sentences, original(draw, pages))
            if draw.random() < 0.5:
                text = edited(text, draw)
        else:
            text = page_of(sentences, number)
        files[draw.randrange(FILES)].append(json.dumps({"text": text}))
    for number, lines in enumerate(files):
        content = zstandard.ZstdCompressor().compress("\n".join(lines).encode())
        (folder / f"{number}.jsonl.zst").write_bytes(content)


def original(draw: random.Random, pages: int) -> int:
    """Returns the number of a page that is not a copy."""
    while True:
        number = draw.randrange(pages)
        if random.Random(number).random() >= COPIES:
            return number


def page_of(sentences: list[str], seed: int) -> str:
    """Returns the page with a seed."""
    draw = random.Random(f"page {seed}")
    lines = draw.choices(sentences, k=int(draw.lognormvariate(2.8, 0.7)) + 5)
    return "\n".join(" ".join(lines[n : n + 4]) for n in range(0, len(lines), 4))


def edited(text: str, draw: random.Random) -> str:
    """Returns a text in which up to 2% of the words are replaced."""
    words = text.split(" ")
    for place in draw.sample(range(len(words)), max(1, int(len(words) * draw.random() / 50))):
        words[place] = draw.choice(words)
    return " ".join(words)


def make_files(folder: Path) -> None:
    """Writes tiny files of text of this Python's documentation."""
    texts = [line for text in library((".py",)) for line in sentences_of(text)]
    for number in range(TINY):
        draw = random.Random(number if number % 10 else 0)
        (folder / f"{number}.txt").write_text("\n".join(draw.choices(texts, k=12)))


def library(endings: tuple[str, ...]) -> Iterator[str]:
    """Yields the text of the files of the standard library."""
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("**/*")):
        if path.suffix in endings and "site-packages" not in path.parts:
            yield path.read_text(errors="ignore")


def sentences_of(text: str) -> Iterator[str]:
    """Yields the sentences of the comments and docstrings of a file."""
    for line in text.splitlines():
        line = line.strip().lstrip("# ")
        if line.count(" ") >= 6 and line[0].isupper() and not set(line) & set("=(){}[]_<>:/\\"):
            yield line.rstrip(".") + "."


def tokenize(keys: list[str], workers: int, folder: Path) -> dict[str, Any]:
    """Tokenizes a corpus, and returns what that took and left."""
    out = folder / "out"
    words = ["tokenize", *keys, f"workers={workers}", f"out={out}"]
    seconds, peak, wall = measured([sys.executable, "-c", KEEP_WORK, *words])
    work = out.with_name("out.partial")
    report = json.loads((out / "cleaning.json").read_text())
    manifest = json.loads((out / "manifest.json").read_text())
    entries = [e for s in manifest["splits"].values() for shards in s.values() for e in shards]
    malformed = {
        f"{source}: malformed": counts["malformed"]
        for source, counts in manifest["sources"].items()
        if "malformed" in counts
    }
    return {
        "cpu_seconds": seconds,
        "seconds": wall,
        "memory_bytes": peak,
        "between_bytes": size_of(work),
        "corpus_bytes": size_of(out),
        "files": count_of(work) + count_of(out),
        "tokens": sum(entry["tokens"] for entry in entries),
        "kept": sum(entry["documents"] for entry in entries),
        "drops": malformed
        | {
            f"{source}: {step['name']}": step["dropped_documents"]
            for source, content in report["sources"].items()
            for step in content["steps"]
        },
    }


def compare(
    keys: list[str], share: float | None, workers: int, folder: Path, came: dict[str, Any]
) -> dict[str, Any]:
    """Plans a corpus that was tokenized, and returns both sides."""
    out = folder / "plan.json"
    words = [*keys, "hours=2", "cpus=4", f"workers={workers}", f"out={out}", "overwrite=true"]
    if share is not None:
        words.append(f"share={share}")
    seconds, _, wall = measured([sys.executable, "-m", "data_pipeline", "plan", *words])
    plan = json.loads(out.read_text())
    # With several workers, the main process loads the models of the cleaning steps as well.
    starts = plan["start_seconds"] * (1 + (workers > 1))
    starts += plan["process_seconds"] * (workers + (workers > 1))
    said = {
        "cpu_seconds": plan["cpu_seconds"] + starts,
        "memory_bytes": plan["memory_bytes"],
        "between_bytes": plan["disk"]["between_bytes"],
        "corpus_bytes": plan["disk"]["corpus"],
        "files": plan["disk"]["between_files"] + plan["disk"]["corpus_files"],
        "tokens": plan["tokens"],
        "kept": plan["kept"],
        "drops": {f"{drop['source']}: {drop['step']}": drop for drop in plan["drops"]},
        "phases": {phase["name"]: phase["cpu_seconds"] for phase in plan["phases"]},
    }
    whole = sum(source["documents"] for source in plan["sources"].values())
    return {
        "share": plan["sample"]["documents"] / whole,
        "documents": whole,
        "plan_cpu_seconds": seconds,
        "plan_seconds": wall,
        "said": said,
        "came": came,
        "outside": outside(said, came),
    }


def outside(said: dict[str, Any], came: dict[str, Any]) -> list[str]:
    """Returns the names of the quantities that are not in their intervals."""
    found = [name for name in ("tokens", "kept") if not holds(said[name], came[name])]
    steps = {*said["drops"], *came["drops"]}
    nothing = {"low": 0, "high": 0}
    found += [
        step
        for step in sorted(steps)
        if not holds(said["drops"].get(step, nothing), came["drops"].get(step, 0))
    ]
    return found


def holds(interval: dict[str, float], value: float) -> bool:
    """Returns True if a value is in an interval, apart from rounding."""
    return interval["low"] - 0.5 <= value <= interval["high"] + 0.5


def measured(command: list[str]) -> tuple[float, int, float]:
    """Runs a command; returns the CPU seconds and peak memory of its processes, and the time."""
    read, write = os.pipe()
    started = time.monotonic()
    child = os.fork()
    if not child:  # so that the peak is that of this command only
        os.close(read)
        ctypes.CDLL(None).prctl(SUBREAPER, 1, 0, 0, 0)
        code = subprocess.run(command, cwd=ROOT, stdout=sys.stderr).returncode
        while True:
            try:
                os.wait()
            except ChildProcessError:
                break
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        found = [used.ru_utime + used.ru_stime, used.ru_maxrss * 1024]
        os.write(write, json.dumps(found).encode())
        os._exit(code)
    os.close(write)
    with os.fdopen(read) as answer:
        found = json.loads(answer.read() or "[0, 0]")
    _, status = os.waitpid(child, 0)
    if status:
        raise SystemExit(f"{' '.join(command)} failed.")
    return found[0], int(found[1]), time.monotonic() - started


def size_of(folder: Path) -> int:
    """Returns the size of all files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def count_of(folder: Path) -> int:
    """Returns the number of files in a folder."""
    return sum(path.is_file() for path in folder.rglob("*"))


def table_of(figures: dict[str, Any]) -> str:
    """Returns the figures as Markdown."""
    return "\n".join(_lines(figures)) + "\n"


def _lines(figures: dict[str, Any]) -> Iterator[str]:
    about = str(__doc__).split("\n\n")
    yield f"{about[0]} {about[1]} {described(figures['machine'])}.".replace("\n", " ")
    yield ""
    yield "| corpus | sample | what | plan | came | plan / came |"
    yield "|---|---|---|---|---|---|"
    for name, runs in figures["corpora"].items():
        for run in runs:
            said, came = run["said"], run["came"]
            label = f"| {name} | {run['share']:.1%} of {run['documents']:,.0f} |"
            for what, key, unit in (
                ("CPU seconds", "cpu_seconds", 1.0),
                ("memory per process, MiB, at most", "memory_bytes", 2.0**20),
                ("disk in between, MB", "between_bytes", 1e6),
                ("disk of the corpus, MB", "corpus_bytes", 1e6),
                ("files", "files", 1.0),
                ("tokens, M", "tokens", 1e6),
                ("documents kept", "kept", 1.0),
            ):
                plan, truth = said[key], came[key] / unit
                value = plan["value"] if isinstance(plan, dict) else plan
                bounds = ""
                if isinstance(plan, dict) and plan["low"] < plan["high"]:
                    bounds = f" ({plan['low'] / unit:,.1f} to {plan['high'] / unit:,.1f})"
                yield (
                    f"{label} {what} | {value / unit:,.1f}{bounds} | {truth:,.1f} | "
                    f"{value / unit / truth:.2f} |"
                )
    yield ""
    for name, runs in figures["corpora"].items():
        for run in runs:
            steps = len({*run["said"]["drops"], *run["came"]["drops"]})
            missed = ", ".join(run["outside"]) or "none"
            yield (
                f"{name}, sample of {run['share']:.1%}: of {steps} dropped shares, the kept "
                f"documents and the tokens, outside of their intervals: {missed}. The plan took "
                f"{run['plan_cpu_seconds']:.0f} CPU s, in {run['plan_seconds']:.0f} s.  "
            )


if __name__ == "__main__":
    main()
