"""Runs a study of mixtures on a corpus in which one source is worth most for the held-out text.

The sources are code and documentation of this Python, and tables of random numbers. The target is
the held-out documentation. The study proposes a mixture from small runs, and checks it against the
natural and the uniform one with fresh seeds.

    python benchmarks/mixture_study.py [--proxies 12] [--tokens 131072] [--folder DIR]
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks.figures import write_results
from benchmarks.machine import described, machine

ROOT = Path(__file__).parents[1]
RESULTS = Path("benchmarks/results/mixture_study.json")
TARGET = "prose"
TABLES, ROWS = 300, 400
MODEL = [
    *("model=demo_12m", "model.vocab_size=2048", "model.hidden_size=96"),
    *("model.intermediate_size=256", "model.num_layers=3", "model.num_heads=4"),
    *("model.head_dim=24", "model.max_seq_len=256"),
]


def main() -> None:
    """Makes the corpus, runs the study, and writes what it found."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--proxies", type=int, default=12)
    parser.add_argument("--tokens", type=int, default=131_072, help="of each run")
    parser.add_argument("--check-seeds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="keeps corpus and study")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.folder or Path(scratch)
        corpus = make_corpus(folder)
        study = folder / "study"
        seeds = list(range(101, 101 + options.check_seeds))
        command(
            *("launch", "study", "study=mixture", f"study.target={{{TARGET}:1}}"),
            *(f"study.proxies={options.proxies}", f"study.check_seeds={seeds}", f"out={study}"),
            *("nproc=1", "--", *MODEL, f"data.folder={corpus}", "optim=adamw_demo"),
            *("recipe=demo", "~recipe.stages.long", "recipe.global_batch_tokens=2048"),
            *("recipe.stages.short.seq_len=128", f"recipe.stages.short.tokens={options.tokens}"),
            f"optim.warmup_tokens={options.tokens // 8}",
            *("device=cpu", "precision=fp32", "logger=files", "report=false"),
            *("parallel.compile=false", "validation.tokens=32768", "validation.every_steps=0"),
            "checkpoint.every_steps=0",
        )
        found = json.loads((study / "finding.json").read_text())
        results = json.loads((study / "results.json").read_text())
    figures = {
        "machine": machine(),
        "tokens_of_a_run": options.tokens,
        "proxies": options.proxies,
        "finding": found,
        "seconds": sum(run.get("used_seconds") or 0 for run in results.values()),
    }
    write_results(options.out, figures, table(figures))


def make_corpus(folder: Path) -> Path:
    """Tokenizes three sources, and returns the folder of the corpus."""
    import sysconfig

    corpus = folder / "corpus"
    if corpus.is_dir():
        return corpus
    tables = folder / "tables"
    tables.mkdir(parents=True, exist_ok=True)
    draw = random.Random(0)
    for number in range(TABLES):
        rows = (",".join(str(draw.randrange(10**6)) for _ in range(8)) for _ in range(ROWS))
        (tables / f"{number}.csv").write_text("\n".join(rows) + "\n")
    library, packages = sysconfig.get_path("stdlib"), sysconfig.get_path("purelib")
    sources = {
        "code": f"{{paths:[{library}],suffixes:[.py],format:text,max_bytes:4000000,"
        "exclude:[site-packages/*,test/*]}",
        TARGET: f"{{paths:[{packages}],suffixes:[.md,.rst,.txt],format:text,max_bytes:4000000}}",
        "tables": f"{{paths:[{tables}],suffixes:[.csv],format:text,max_bytes:4000000}}",
    }
    command(
        *("data_pipeline", "tokenize", "corpus=text_files", "tokenizer=bpe_8k"),
        *("tokenizer.vocab_size=2048", f"out={corpus}"),
        "~corpus.sources.text",
        *(f"+corpus.sources.{name}={keys}" for name, keys in sources.items()),
    )
    return corpus


def command(*words: str) -> None:
    """Runs `python -m`, with its output on this terminal."""
    subprocess.run([sys.executable, "-m", *words], cwd=ROOT, check=True)


def table(figures: dict[str, Any]) -> str:
    """Returns the results as Markdown."""
    found = figures["finding"]
    lines = [
        f"{str(__doc__).split(chr(10))[0]} {described(figures['machine'])}.",
        "",
        f"{figures['proxies']} drawn mixtures, {figures['tokens_of_a_run']:,} tokens per run, "
        f"{figures['seconds']:.0f} s of steps.",
        "",
        found["decision"],
        "",
        "| source | proposed | 90% interval |",
        "|---|---|---|",
    ]
    numbers = found.get("numbers", found)
    pairs = zip(numbers["mixture"].items(), numbers["low"], numbers["high"], strict=True)
    lines += [f"| {name} | {weight:.3f} | {a:.3f} to {b:.3f} |" for (name, weight), a, b in pairs]
    lines += ["", "| pairs with | differences | mean ± standard error |", "|---|---|---|"]
    for other, values in numbers["differences"].items():
        error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.0
        cells = ", ".join(f"{value:+.4f}" for value in values)
        lines.append(f"| {other} | {cells} | {statistics.fmean(values):+.4f} ± {error:.4f} |")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    main()
