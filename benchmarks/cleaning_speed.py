"""Measures the speed of each cleaning step on one core, in MB per second.

The text is this Python's own sources and docs, so web pages give other figures; the ratios between
the steps are what matters.

    python benchmarks/cleaning_speed.py [--megabytes 8]
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks.figures import write_results
from benchmarks.machine import machine

STEPS = ("gopher_quality", "gopher_repetition", "c4", "fineweb", "pii", "decontaminate", "quality")


def main() -> None:
    """Times every step by itself, and MinHash, and writes the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--megabytes", type=float, default=8)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/cleaning_speed.json"))
    options = parser.parse_args()
    texts = real_texts(options.megabytes)
    megabytes = sum(len(text.encode()) for text in texts) / 1e6
    rates: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as name:
        for step, run in [*chains(texts, Path(name)), ("minhash", lambda: signatures(texts))]:
            started = time.process_time()
            run()
            rates[step] = round(megabytes / (time.process_time() - started), 2)
    figures = {
        "machine": machine(),
        "documents": len(texts),
        "megabytes": megabytes,
        "megabytes_per_second": rates,
    }
    write_results(options.out, figures)


def real_texts(megabytes: float) -> list[str]:
    """Returns whole files, chosen at random."""
    roots = [Path(sysconfig.get_path(name)) for name in ("stdlib", "purelib")]
    paths = [p for root in roots for end in (".py", ".md", ".rst") for p in root.rglob(f"*{end}")]
    random.Random(0).shuffle(paths)
    texts, size = [], 0
    for path in paths:
        if size > megabytes * 1e6:
            break
        text = path.read_text(errors="ignore")
        if 500 < len(text) < 50_000:
            texts.append(text)
            size += len(text.encode())
    return texts


def chains(texts: list[str], folder: Path) -> Iterator[tuple[str, Callable[[], object]]]:
    """Yields each step with a function that runs it over all documents, after one warm-up."""
    from data_pipeline.cleaning.chain import Chain
    from data_pipeline.cleaning.config import CleaningConfig, DecontaminateOptions, QualityOptions
    from data_pipeline.cleaning.quality_model import QualityModel

    exam = folder / "exam.jsonl"
    rows = [json.dumps({"text": " ".join(text.split()[40:80])}) for text in texts[::10]]
    exam.write_text("\n".join(rows))
    half = len(texts) // 2
    examples = [*texts[:half], *(text[::-1] for text in texts[:half])]
    model = QualityModel.train(examples, [True] * half + [False] * half, seed=0, trees=200)
    (folder / "quality.lgb").write_text(model.to_text())
    for step in STEPS:
        config = CleaningConfig(
            steps=[step],
            decontaminate=DecontaminateOptions(files=[str(exam)]),
            quality=QualityOptions(model=str(folder / "quality.lgb")),
        )
        chain = Chain(config, [step])
        chain.run(texts[0])
        yield step, partial(run_all, chain, texts)


def run_all(chain: Any, texts: list[str]) -> None:
    """Cleans all texts."""
    for text in texts:
        chain.run(text)


def signatures(texts: list[str]) -> None:
    """Times the first pass of MinHash."""
    from data_pipeline.cleaning.config import DedupOptions
    from data_pipeline.dedup import minhash

    with tempfile.TemporaryDirectory() as name:
        minhash.write_signatures(texts, Path(name) / "keys", DedupOptions(minhash=True))


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    main()
