"""Compares every family with its class in transformers, and takes each the whole way.

    python benchmarks/families.py [--families qwen2 smollm3] [--paths]

Without `--paths`: logits, loss and gradients in float32 with eager attention, of exported and of
imported models, in the cases of tests/model/families/cases.py. With `--paths`: from training to a
chat model, the stations of tests/family_path.py, with a model of two layers.

The results of the other families are kept. The tables are also written into docs/families.md.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks.machine import machine
from conf.terminal import silence_torchao
from model.families import FAMILIES

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks/results/families.json"
PAGE = ROOT / "docs/families.md"


def main() -> None:
    """Measures families, and writes figures and tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--families", nargs="+", choices=FAMILIES, default=list(FAMILIES))
    parser.add_argument("--paths", action="store_true", help="from training to a chat model")
    options = parser.parse_args()
    silence_torchao()
    kind, measure = ("paths", path_of) if options.paths else ("parity", parity_of)
    for family in options.families:
        measured = measure(family)
        print(family, json.dumps(measured), flush=True)
        figures: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
        found = figures.get(kind, {}) | {family: measured}
        figures[kind] = {name: found[name] for name in FAMILIES if name in found}
        figures["machine"] = machine()
        RESULTS.write_text(json.dumps(figures, indent=2) + "\n")
        PAGE.write_text(with_tables(PAGE.read_text(), figures))


def parity_of(family: str) -> dict[str, Any]:
    """Returns the largest differences of a family from transformers over its cases."""
    from tests.model.families.cases import CASES, case_of
    from tests.model.families.parity import Differences, on_export, on_import

    found: dict[str, Any] = {"cases": len(CASES[family])}
    for direction, compare in (("export", on_export), ("import", on_import)):
        worst = Differences(0.0, 0.0, 0.0)
        for case in CASES[family]:
            with tempfile.TemporaryDirectory() as folder:
                differences = compare(case_of(family, case), Path(folder))
            worst = Differences(*map(max, zip(worst, differences, strict=True)))
        found[direction] = worst._asdict()
    return found


def path_of(family: str) -> dict[str, Any]:
    """Returns the result of each station of a family, and its seconds."""
    from tests.family_path import LAYOUTS, FamilyPath
    from tests.warm import Warm

    warm = Warm(ROOT, "s3fs")

    def command(
        *arguments: str, processes: int = 0, timeout: float = 1000
    ) -> subprocess.CompletedProcess[str]:
        return warm.command(list(arguments), processes, timeout, {})

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        corpus, tasks = named_corpus(folder)
        path = FamilyPath(family, folder / family, corpus, command)
        path.folder.mkdir()
        stations: dict[str, Callable[[], Any]] = {
            "pretrain on 2 ranks, export": path.train,
            "loss in transformers": path.stock_losses,
            **{layout: lambda layout=layout: path.differ(layout) for layout in LAYOUTS},  # type: ignore[misc]
            "SIGKILL and resume": path.kill_and_resume,
            "SFT, 4 steps": path.tune,
            "lm_eval": lambda: path.score(tasks),
            "generate": path.generate,
            "remap_vocab": path.remap,
        }
        found = {station: visit(call) for station, call in stations.items()}
    warm.close()
    return found


def visit(call: Callable[[], Any]) -> dict[str, Any]:
    """Returns what a station returned, or its error, and its seconds."""
    start = time.perf_counter()
    try:
        result = {"result": call()}
    except Exception as error:
        traceback.print_exc()
        result = {"error": f"{type(error).__name__}: {str(error)[-500:]}"}
    return {**result, "seconds": round(time.perf_counter() - start, 1)}


def named_corpus(folder: Path) -> tuple[Any, Path]:
    """Returns a corpus whose documents have names, and a folder of small tasks made from it."""
    from data_pipeline.tokenizing.documents import write_names
    from eval.tasks.build_tasks import BuildTasksConfig, build_tasks
    from tests.corpora import make_corpus

    corpus = make_corpus(folder / "corpus", held_out=40_000)
    for shards in corpus.splits["held_out"].values():
        for entry in shards:
            files = [f"{entry['file']}.py"] * entry["documents"]
            write_names(corpus.folder / entry["file"], files, range(len(files)))
    tasks = folder / "tasks"
    build_tasks(
        BuildTasksConfig(
            corpus=str(corpus.folder),
            out=str(tasks),
            questions=12,
            context_chars=60,
            continuation_chars=(20, 30),
            documents=5,
            document_chars=200,
        )
    )
    return corpus, tasks


def with_tables(page: str, figures: dict[str, Any]) -> str:
    """Returns the page with the tables of these figures between their marks."""
    for kind, table in (("parity", parity_table), ("paths", path_table)):
        start, end = f"<!-- {kind} -->\n", f"<!-- end of {kind} -->\n"
        before, rest = page.split(start)
        _, after = rest.split(end)
        page = before + start + table(figures.get(kind, {})) + end + after
    return page


def parity_table(parity: dict[str, Any]) -> str:
    """Returns a row per family with its largest differences."""
    measures = ("logits", "loss", "gradients")
    rows = [
        [
            f"`{FAMILIES[family].hf_class}`",
            str(found["cases"]),
            *(f"{found[way][what]:.1e}" for way in ("export", "import") for what in measures),
        ]
        for family, found in parity.items()
    ]
    titles = [f"{way}: {what}" for way in ("export", "import") for what in measures]
    return markdown(["class", "cases", *titles], rows)


def path_table(paths: dict[str, Any]) -> str:
    """Returns a row per station with the result for each family."""
    stations = {station for found in paths.values() for station in found}
    ordered = [s for found in paths.values() for s in found if s in stations]
    rows = [
        [station, *(in_words(found.get(station)) for found in paths.values())]
        for station in dict.fromkeys(ordered)
    ]
    return markdown(["station", *(f"`{family}`" for family in paths)], rows)


def in_words(visited: dict[str, Any] | None) -> str:
    """Returns the result of a station for a table."""
    if visited is None:
        return ""
    if "error" in visited:
        return "failed"
    result = visited["result"]
    return f"{result:.0e}" if isinstance(result, float) and result else "passed"


def markdown(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns a table in Markdown."""
    lines = [titles, ["---"] * len(titles), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


if __name__ == "__main__":
    main()
