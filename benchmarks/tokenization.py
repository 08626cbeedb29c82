"""JSON lines on disk to finished shards: ours beside Megatron-style preprocessing, paired.

Megatron-style: a pool of processes, each document parsed and encoded alone by `tokenizers`, ids
sent back as a list, one writer that adds them to an `IndexedDatasetBuilder` (as Megatron-LM's
tools/preprocess_data.py, which is not in its wheel). Both get the same file, tokenizer and
processes, in turns; the .bin and .idx must be the same bytes.

    python benchmarks/tokenization.py [--megabytes 80] [--repeats 3]
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

VOCAB_SIZE = 32_000
_tokenizer = None


def main() -> None:
    """Makes the text, times both, writes the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--megabytes", type=float, default=80)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--side", choices=("ours", "megatron"), help=argparse.SUPPRESS)
    parser.add_argument("--exact-dedup", action="store_true", help="ours also looks for copies")
    parser.add_argument("--folder", type=Path, help="where to work")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/tokenization.json"))
    options = parser.parse_args()
    if options.side:
        {"ours": ours, "megatron": megatron}[options.side](options)
        return
    with tempfile.TemporaryDirectory() as temporary:
        options.folder = options.folder or Path(temporary)
        figures = compare(options)
    print(json.dumps(figures, indent=1))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(figures, indent=1) + "\n")


def compare(options: argparse.Namespace) -> dict[str, object]:
    """Runs both in turns, each in a fresh process; medians of the seconds that a call takes, the
    start of the interpreter not counted."""
    about = make_text(options.folder, options.megabytes)
    seconds: dict[str, list[float]] = {"ours": [], "ours, copies dropped": [], "megatron": []}
    digests: dict[str, str] = {}
    tokens = 0
    for _ in range(options.repeats):
        for side in seconds:
            name = side.split(",")[0]
            command = [sys.executable, __file__, "--side", name, "--folder", str(options.folder)]
            command += ["--workers", str(options.workers)]
            command += ["--exact-dedup"] if "copies" in side else []
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            result = json.loads(done.stdout.splitlines()[-1])
            seconds[side].append(result["seconds"])
            digests[side] = result["sha256"]
            tokens = result["tokens"] if side == "megatron" else tokens
    medians = {side: statistics.median(values) for side, values in seconds.items()}
    return {
        "text": about,
        "workers": options.workers,
        "tokens": tokens,
        "seconds": seconds,
        "tokens_per_second": {side: tokens / value for side, value in medians.items()},
        "megabytes_per_second": {s: about["bytes"] / 1e6 / v for s, v in medians.items()},
        "times_megatron": {s: medians["megatron"] / v for s, v in medians.items()},
        "same_bytes": digests["ours"] == digests["megatron"],
    }


def make_text(folder: Path, megabytes: float) -> dict[str, object]:
    """This Python's own sources and docs, each file a document of one JSON line, and a tokenizer
    trained on them. Files are repeated under new line numbers where they are not enough."""
    from data_pipeline.corpus import TokenizerConfig
    from data_pipeline.tokenizer import train_tokenizer

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


def ours(options: argparse.Namespace) -> None:
    """`python -m data_pipeline tokenize` of the file, one shard a part."""
    from data_pipeline.cleaning.config import CleaningConfig, DedupOptions
    from data_pipeline.corpus import CorpusConfig, SourceConfig, TokenizeConfig, TokenizerConfig
    from data_pipeline.tokenize import tokenize

    out = options.folder / "ours"
    shutil.rmtree(out, ignore_errors=True)
    path = options.folder / "text.jsonl"
    dedup = DedupOptions(exact=options.exact_dedup)
    corpus = CorpusConfig(
        name="bench",
        held_out_fraction=0.0,
        shard_bytes=path.stat().st_size // 8,
        cleaning=CleaningConfig(dedup=dedup),
        sources={"text": SourceConfig("jsonl", [str(path)])},
    )
    config = TokenizeConfig(
        corpus=corpus,
        tokenizer=TokenizerConfig(path=str(options.folder / "tokenizer.json")),
        out=str(out),
        workers=options.workers,
    )
    started = time.perf_counter()
    tokenize(config)
    say(out / "train", time.perf_counter() - started)


def megatron(options: argparse.Namespace) -> None:
    """A pool over the documents of each of our parts, in our order of documents, so that the bytes
    can be compared."""
    import torch

    from data_pipeline.corpus import CorpusConfig, SourceConfig
    from data_pipeline.megatron_writer import DType, IndexedDatasetBuilder
    from data_pipeline.units import plan_units

    out = options.folder / "megatron"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    path = options.folder / "text.jsonl"
    started = time.perf_counter()
    corpus = CorpusConfig(
        name="bench",
        shard_bytes=path.stat().st_size // 8,
        sources={"text": SourceConfig("jsonl", [str(path)])},
    )
    tokenizer = str(options.folder / "tokenizer.json")
    with multiprocessing.Pool(options.workers, initialise, (tokenizer,)) as pool:
        for unit in plan_units(corpus):
            lines = lines_between(path, unit.start, unit.end)
            random.Random(f"0:text:{unit.number}:train").shuffle(lines)
            prefix = out / f"text-{unit.number:05}"
            builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=DType.optimal_dtype(VOCAB_SIZE))
            for ids in pool.imap(encode, lines, 32):
                builder.add_document(torch.tensor(ids), [len(ids)])
            builder.finalize(f"{prefix}.idx")
    say(out, time.perf_counter() - started)


def initialise(path: str) -> None:
    """The tokenizer of a process."""
    from data_pipeline.tokenizer import load_tokenizer

    global _tokenizer
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    _tokenizer = load_tokenizer(Path(path)), 2


def encode(line: bytes) -> list[int]:
    """One document."""
    assert _tokenizer is not None
    tokenizer, eos = _tokenizer
    ids: list[int] = tokenizer.encode(json.loads(line)["text"], add_special_tokens=False).ids
    return [*ids, eos]


def lines_between(path: Path, start: int, end: int) -> list[bytes]:
    """The lines that begin in [start, end)."""
    lines = []
    position = 0
    with path.open("rb") as file:
        for line in file:
            if start <= position < end:
                lines.append(line)
            position += len(line)
    return lines


def say(folder: Path, seconds: float) -> None:
    """Seconds, tokens and a digest of all .bin and .idx, as the last line."""
    digest = hashlib.sha256()
    tokens = 0
    for path in sorted(folder.glob("*.bin")) + sorted(folder.glob("*.idx")):
        digest.update(path.name.encode() + path.read_bytes())
        tokens += path.stat().st_size // 2 if path.suffix == ".bin" else 0
    print(json.dumps({"seconds": seconds, "tokens": tokens, "sha256": digest.hexdigest()}))


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    main()
