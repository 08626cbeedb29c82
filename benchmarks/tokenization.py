"""Compares tokenization from JSON lines to finished shards with Megatron-style preprocessing.

Megatron-style means a pool of processes in which each document is parsed and encoded alone by
`tokenizers`, ids are sent back as a list, and one writer adds them to an `IndexedDatasetBuilder`
(like Megatron-LM's tools/preprocess_data.py, which is not in its wheel). Both get the same file,
tokenizer and number of processes, in turns, and are timed as whole processes from start to end; the
.bin and .idx have to be identical.

    python benchmarks/tokenization.py [--megabytes 500] [--repeats 3]
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import random
import shutil
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks.figures import write_results
from benchmarks.machine import machine

VOCAB_SIZE = 32_000
_tokenizer = None


def main() -> None:
    """Makes the text, times both, and writes the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--megabytes", type=float, default=500)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--side", choices=("megatron",), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help="where to work")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/tokenization.json"))
    options = parser.parse_args()
    if options.side:
        megatron(options)
        return
    with tempfile.TemporaryDirectory() as temporary:
        options.folder = options.folder or Path(temporary)
        figures = compare(options)
    write_results(options.out, figures)


def compare(options: argparse.Namespace) -> dict[str, object]:
    """Runs all in turns; returns the median seconds of whole processes."""
    about = make_text(options.folder, options.megabytes)
    this = [sys.executable, __file__, "--side", "megatron", "--folder", str(options.folder)]
    commands = {
        "ours": ours(options, copies=False),
        "ours, copies dropped": ours(options, copies=True),
        "megatron": [*this, "--workers", str(options.workers)],
    }
    seconds: dict[str, list[float]] = {side: [] for side in commands}
    digests: dict[str, str] = {}
    tokens = 0
    for _ in range(options.repeats):
        for side, command in commands.items():
            shutil.rmtree(options.folder / "out", ignore_errors=True)
            started = time.perf_counter()
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            seconds[side].append(time.perf_counter() - started)
            digests[side], found = content(options.folder / "out" / "train")
            tokens = found if side == "megatron" else tokens
    medians = {side: statistics.median(values) for side, values in seconds.items()}
    return {
        "machine": machine(),
        "text": about,
        "workers": options.workers,
        "tokens": tokens,
        "seconds": seconds,
        "tokens_per_second": {side: tokens / value for side, value in medians.items()},
        "megabytes_per_second": {s: about["bytes"] / 1e6 / v for s, v in medians.items()},
        "times_megatron": {s: medians["megatron"] / v for s, v in medians.items()},
        "same_bytes": digests["ours"] == digests["megatron"],
    }


def make_text(folder: Path, megabytes: float) -> dict[str, Any]:
    """Writes this Python's own sources and docs as JSON lines, and trains a tokenizer on them.

    Every file is one document. Files are repeated under new names if they are not enough.
    """
    from data_pipeline.text.corpus import TokenizerConfig
    from data_pipeline.tokenizing.tokenizer import train_tokenizer

    roots = [Path(sysconfig.get_path(name)) for name in ("stdlib", "purelib")]
    texts, size = [], 0
    for path in sorted({p for root in roots for p in root.rglob("*")}):
        if path.suffix not in (".py", ".md", ".rst", ".txt", ".pyi") or not path.is_file():
            continue
        try:
            text = path.read_text()
        except (UnicodeDecodeError, OSError):
            continue
        if 200 < len(text) < 1_000_000:
            texts.append(text)
            size += len(text.encode())
    random.Random(0).shuffle(texts)
    taken, total = [], 0
    for text in texts:
        if total >= megabytes * 1e6:
            break
        taken.append(text)
        total += len(text.encode())
    with (folder / "text.jsonl").open("w") as out:
        for text in taken:
            out.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
    sample = taken[: max(1, len(taken) // 4)]
    train_tokenizer(sample, TokenizerConfig(vocab_size=VOCAB_SIZE)).save(
        str(folder / "tokenizer.json")
    )
    return {"documents": len(taken), "bytes": total, "vocab_size": VOCAB_SIZE}


def ours(options: argparse.Namespace, copies: bool) -> list[str]:
    """Returns the command of Headwater for the file, with eight parts."""
    path = options.folder / "text.jsonl"
    return [
        *(sys.executable, "-m", "data_pipeline", "tokenize", "corpus=jsonl", "tokenizer=load"),
        f"corpus.sources.web.paths=['{path}']",
        f"corpus.cleaning.dedup.exact={str(copies).lower()}",
        *("corpus.held_out_fraction=0", f"corpus.shard_bytes={path.stat().st_size // 8}"),
        *(f"tokenizer.path={options.folder / 'tokenizer.json'}", 'tokenizer.pad_token="<pad>"'),
        f"workers={options.workers}",
        f"out={options.folder / 'out'}",
    ]


def megatron(options: argparse.Namespace) -> None:
    """Runs a pool over the documents of each part, in the order in which Headwater writes them.

    The bytes of both can therefore be compared.
    """
    import torch
    from megatron.core.datasets.indexed_dataset import DType, IndexedDatasetBuilder

    from data_pipeline.text.corpus import CorpusConfig, SourceConfig
    from data_pipeline.text.units import plan_units

    out = options.folder / "out" / "train"
    out.mkdir(parents=True)
    path = options.folder / "text.jsonl"
    corpus = CorpusConfig(
        name="bench",
        shard_bytes=path.stat().st_size // 8,
        sources={"web": SourceConfig("jsonl", [str(path)])},
    )
    tokenizer = str(options.folder / "tokenizer.json")
    with multiprocessing.Pool(options.workers, initialise, (tokenizer,)) as pool:
        for unit in plan_units(corpus):
            lines = lines_between(path, unit.start, unit.end)
            random.Random(f"0:web:{unit.number}:train").shuffle(lines)
            prefix = out / f"web-{unit.number:05}"
            builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=DType.optimal_dtype(VOCAB_SIZE))
            for ids in pool.imap(encode, lines, 32):
                builder.add_document(torch.tensor(ids), [len(ids)])
            builder.finalize(f"{prefix}.idx")


def initialise(path: str) -> None:
    """Loads the tokenizer of a process."""
    from data_pipeline.tokenizing.tokenizer import load_tokenizer

    global _tokenizer
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    _tokenizer = load_tokenizer(Path(path)), 2


def encode(line: bytes) -> list[int]:
    """Encodes one document."""
    assert _tokenizer is not None
    tokenizer, eos = _tokenizer
    ids: list[int] = tokenizer.encode(json.loads(line)["text"], add_special_tokens=False).ids
    return [*ids, eos]


def lines_between(path: Path, start: int, end: int) -> list[bytes]:
    """Yields the lines that begin in [start, end)."""
    lines = []
    position = 0
    with path.open("rb") as file:
        for line in file:
            if start <= position < end:
                lines.append(line)
            position += len(line)
    return lines


def content(folder: Path) -> tuple[str, int]:
    """Returns a digest of all .bin and .idx files, and the number of their tokens."""
    digest = hashlib.sha256()
    tokens = 0
    for path in sorted(folder.glob("*.bin")) + sorted(folder.glob("*.idx")):
        digest.update(path.name.encode() + path.read_bytes())
        tokens += path.stat().st_size // 2 if path.suffix == ".bin" else 0
    return digest.hexdigest(), tokens


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    main()
