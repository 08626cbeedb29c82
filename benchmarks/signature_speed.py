"""Compares the CPU time of digests and MinHash signatures with that of earlier commits.

The sides take turns. Each run is a new process that writes the signatures of the same source files
of Python packages. The other commits are checked out with `git worktree` for the duration.

    python benchmarks/signature_speed.py --others 77eaa82 53081f4
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
import numpy as np

from benchmarks.dedup_quality import real_texts
from benchmarks.figures import write_results
from benchmarks.machine import machine

ROOT = Path(__file__).parents[1]
SIDE = """
import hashlib, inspect, json, sys, time
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from data_pipeline.cleaning.config import DedupOptions
from data_pipeline.cleaning.ngrams import n_grams, word_hashes, words

# The module and its arguments have changed since these commits.
at = "dedup" if find_spec("data_pipeline.dedup") else "cleaning"
minhash = import_module(f"data_pipeline.{at}.minhash")
texts = json.loads(Path(sys.argv[1]).read_text())
options = DedupOptions(minhash=True)
names = list(inspect.signature(minhash.write_signatures).parameters)
out = (0, Path(sys.argv[2])) if names[1] == "unit" else (Path(sys.argv[2]) / "keys",)
minhash.write_signatures(texts[:50], *out, options)
started = time.process_time()
minhash.write_signatures(texts, *out, options)
seconds = time.process_time() - started
digest = hashlib.sha256()
for text in texts[:50]:
    grams = n_grams(word_hashes(words(minhash.NUMBER.sub("0", text))), options.n_grams)
    digest.update(minhash.signature(grams, options.buckets, options.hashes_per_bucket).tobytes())
print(seconds, digest.hexdigest())
"""


def main() -> None:
    """Runs all sides in turns and writes the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--others", nargs="+", required=True, help="commits to compare with")
    parser.add_argument("--documents", type=int, default=3000)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/signature_speed.json"))
    options = parser.parse_args()
    texts = real_texts(options.documents)
    size = sum(map(len, texts)) / 1e6
    seconds: dict[str, list[float]] = {name: [] for name in ("now", *options.others)}
    digests: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "texts.json").write_text(json.dumps(texts))
        places = {"now": ROOT}
        try:
            for commit in options.others:
                places[commit] = folder / f"tree-{commit}"
                git("worktree", "add", "--detach", str(places[commit]), commit)
            for _ in range(options.rounds):
                for side, place in places.items():
                    taken, digests[side] = run(place, folder, side)
                    seconds[side].append(taken)
        finally:
            for commit in options.others:
                git("worktree", "remove", "--force", str(folder / f"tree-{commit}"))
    figures: dict[str, Any] = {"machine": machine(), "MB of text": round(size, 1)}
    for side, runs in seconds.items():
        ratios = np.array(runs) / np.array(seconds["now"])
        figures[side] = {
            "CPU s, median": round(float(np.median(runs)), 3),
            "MB per CPU s": round(size / float(np.median(runs)), 1),
            "CPU time compared with now, median of pairs": round(float(np.median(ratios)), 3),
        }
        figures[side]["same signatures"] = digests[side] == digests["now"]
    figures["runs"] = seconds
    write_results(options.out, figures)


def run(place: Path, folder: Path, side: str) -> tuple[float, str]:
    """Returns the CPU seconds that the code in a folder takes, and a digest of signatures."""
    (folder / side / "out").mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-c", SIDE, str(folder / "texts.json"), str(folder / side / "out")]
    env = os.environ | {"PYTHONPATH": str(place), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, env=env, cwd=place, stdout=subprocess.PIPE, text=True, check=True
    )
    seconds, digest = done.stdout.split()
    return float(seconds), digest


def git(*arguments: str) -> None:
    """Runs a git command in the repository."""
    subprocess.run(["git", "-C", str(ROOT), *arguments], check=True, capture_output=True)


if __name__ == "__main__":
    main()
