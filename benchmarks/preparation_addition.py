"""Compares adding 10% to a prepared corpus with preparing the whole.

Made documents stand for two crawls: three in ten repeat an earlier document, half of them with some
words replaced. One process with deduplication by digests and MinHash prepares all of them with the
old crawl first, then the old crawl alone, and then adds the new one. CPU seconds include the start
of Python. An addition keeps an old document that one preparation drops if a new document joins two
clusters of old ones.

    python benchmarks/preparation_addition.py [--documents 400000] [--folder DIR]
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks.figures import write_results
from benchmarks.machine import machine
from data_pipeline.store.manifest import Manifest, load_manifest
from data_pipeline.tokenizing.documents import read_documents

ROOT = Path(__file__).parents[1]
WORDS_PER_DOCUMENT, VOCABULARY = 300, 50_000
COPIES, EDITED, REPLACED = 0.3, 0.5, 3
DOCUMENTS_PER_FILE = 20_000


def main() -> None:
    """Prepares the corpus in both ways, compares them, and writes the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--documents", type=int, default=400_000, help="of the old part")
    parser.add_argument("--folder", type=Path, help="where to work")
    parser.add_argument(
        "--out", type=Path, default=Path("benchmarks/results/preparation_addition.json")
    )
    options = parser.parse_args()
    added = options.documents // 10
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        write_documents(folder, options.documents, added)
        more = f"+corpus.sources.more={{format:jsonl,paths:['{folder}/new-*.jsonl']}}"
        whole = prepare(folder, "old", more, f"out={folder}/whole")
        # The tokenizer is the same, so that the same ids are compared.
        tokenizer = f"tokenizer.path={folder}/whole/tokenizer.json"
        old = prepare(folder, "old", tokenizer, f"out={folder}/grown")
        addition = prepare(folder, "new", f"add_to={folder}/grown")
        grown = load_manifest(folder / "grown")
        kept, in_one = texts(grown), texts(load_manifest(folder / "whole"))
        index = sum(path.stat().st_size for path in (folder / "grown/index").iterdir())
        write_results(
            options.out,
            {
                "machine": machine(),
                "documents": {"old": options.documents, "added": added},
                "kept": {
                    "old": grown.at_edition(1).sources["web"]["documents"],
                    "added": grown.editions[1]["sources"]["web"]["documents"],
                },
                "kept_by_one_preparation_alone": (in_one - kept).total(),
                "kept_by_the_addition_alone": (kept - in_one).total(),
                "index_bytes_per_document": index / options.documents,
                "whole": whole,
                "old_part": old,
                "addition": addition,
                "addition_to_whole": addition["cpu_seconds"] / whole["cpu_seconds"],
            },
        )


def write_documents(folder: Path, old: int, new: int) -> None:
    """Writes the files old-*.jsonl and new-*.jsonl of made documents."""
    draw = np.random.default_rng(0)
    letters = draw.integers(97, 123, (VOCABULARY, 9), np.uint8)
    lengths = draw.integers(2, 10, VOCABULARY)
    words = [row[:n].tobytes().decode() for row, n in zip(letters, lengths, strict=True)]
    vocabulary = np.array(words, dtype=object)
    for name, start, end in (("old", 0, old), ("new", old, old + new)):
        for number, first in enumerate(range(start, end, DOCUMENTS_PER_FILE)):
            with (folder / f"{name}-{number:04}.jsonl").open("w") as file:
                for document in range(first, min(end, first + DOCUMENTS_PER_FILE)):
                    text = " ".join(vocabulary[words_of(document)])
                    file.write(json.dumps({"text": text}) + "\n")


def words_of(document: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Returns the words of a document, which may be a copy of an earlier one."""
    draw = np.random.default_rng(document)
    if document and draw.random() < COPIES:
        words = words_of(int(draw.integers(document)))
        if draw.random() < EDITED:
            words[draw.integers(len(words), size=REPLACED)] = draw.integers(VOCABULARY)
        return words
    # Common words are drawn far more often than rare ones.
    return (VOCABULARY * draw.random(WORDS_PER_DOCUMENT) ** 4).astype(np.int64)


def prepare(folder: Path, part: str, *overrides: str) -> dict[str, float]:
    """Runs `tokenize` on the files of a part, and returns what it took."""
    command = [
        *(sys.executable, "-m", "data_pipeline", "tokenize", "workers=1", "corpus=jsonl"),
        *(
            f"corpus.sources.web.paths=['{folder}/{part}-*.jsonl']",
            "corpus.cleaning.dedup.minhash=true",
        ),
        *("corpus.shard_bytes=64000000", *overrides),
    ]
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    subprocess.run(command, check=True, cwd=ROOT, env=environment)
    after, wall = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic() - started
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"cpu_seconds": seconds, "wall_seconds": wall}


def texts(manifest: Manifest) -> Counter[int]:
    """Returns how often each kept document occurs, by the hash of its text."""
    return Counter(_hashes(manifest))


def _hashes(manifest: Manifest) -> Iterator[int]:
    for split, sources in manifest.splits.items():
        for source in sources:
            for document in read_documents(manifest, split, source):
                yield hash(document.text)


if __name__ == "__main__":
    main()
