"""Measures how a corpus records which document each duplicate repeats, and how fast it is found.

Two documents in five of a made corpus repeat an earlier one, some of them one of a thousand
boilerplate pages, and one in ten through another duplicate in a lower range of units. Every task
runs in a process of its own. A look-up opens the tables and finds a document by file and row, the
one that it repeats, and the size of the cluster; the texts are not read.

    python benchmarks/duplicate_lookup.py [--drops 1 10 100] [--folder DIR]
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks.figures import write_results
from benchmarks.machine import machine
from benchmarks.preparation_growth import DOCUMENTS_PER_UNIT, Stage, folder_bytes
from data_pipeline.cleaning.config import DedupOptions
from data_pipeline.dedup import matching, originals
from data_pipeline.dedup.digests import ROW, rows_path
from data_pipeline.dedup.lookup import Duplicates
from data_pipeline.files import write_array
from data_pipeline.store.manifest import Manifest
from data_pipeline.text.corpus import CorpusConfig, SourceConfig
from data_pipeline.text.units import SourceFile, Unit

BOILERPLATE, CHAINED = 0.1, 0.1
BYTES_PER_ROW = 3000
LOOKUPS = 50


def main() -> None:
    """Measures each number of drops, and writes the figures after each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--drops", type=float, nargs="+", default=[1, 10, 100], help="1e6")
    parser.add_argument("--folder", type=Path, help="where to work")
    parser.add_argument(
        "--out", type=Path, default=Path("benchmarks/results/duplicate_lookup.json")
    )
    options = parser.parse_args()
    figures: dict[str, Any] = {"machine": machine()}
    for millions in options.drops:
        with tempfile.TemporaryDirectory(dir=options.folder) as name:
            figures[f"{millions:g} million drops"] = measure(int(millions * 1e6), Path(name))
        write_results(options.out, figures)


def measure(drops: int, work: Path) -> dict[str, Any]:
    """Returns the figures of one number of drops."""
    units = [made_unit(number) for number in range(-(-drops * 5 // 2 // DOCUMENTS_PER_UNIT))]
    documents = [DOCUMENTS_PER_UNIT] * len(units)
    plan = matching.make_plan(documents, DedupOptions(minhash=True))
    for number in range(plan.merge_tasks):
        make_links(number, plan, work)
    line = np.arange(DOCUMENTS_PER_UNIT)
    rows = np.zeros(DOCUMENTS_PER_UNIT, ROW)
    rows["number"], rows["line"], rows["position"] = line, line, line * BYTES_PER_ROW
    for unit in units:
        write_array(rows_path(work, unit.id), rows)
    folder = work / "corpus"
    folder.mkdir()
    first_rows = [0] * len(units)
    corpus = CorpusConfig(name="made", sources={"web": SourceConfig("jsonl", ["/texts"])})
    stages = {name: Stage() for name in ("resolve", "files", "record", "look-up")}
    for number in range(plan.merge_tasks):
        stages["resolve"].run(originals.resolve_range, number, plan, work)
    stages["files"].run(originals.record_files, corpus, units, first_rows, folder)
    for number in range(plan.merge_tasks):
        part = slice(*plan.first_units[number : number + 2])
        arguments = (number, plan, units[part], first_rows[part], work, folder)
        stages["record"].run(originals.record_range, *arguments)
    stages["look-up"].run(look_up, folder, len(units))
    millions = drops / 1e6
    return {
        "documents": sum(documents),
        "ranges": plan.merge_tasks,
        "resolve, CPU s per million drops": round(stages["resolve"].cpu_seconds / millions, 3),
        "record, CPU s per million drops": round(stages["record"].cpu_seconds / millions, 3),
        "largest task, MiB": round(max(stage.peak_mib for stage in stages.values())),
        "bytes per drop": round(folder_bytes(folder) / drops, 1),
        "look-up, ms": round(stages["look-up"].wall_seconds * 1e3 / LOOKUPS, 1),
        "look-up, MiB": round(stages["look-up"].peak_mib),
    }


def made_unit(number: int) -> Unit:
    """Returns a unit of one file."""
    name = f"part-{number:05}.jsonl"
    return Unit(number, "web", number, (SourceFile(f"/texts/{name}", name, 1 << 28, ""),))


def make_links(number: int, plan: matching.DedupPlan, work: Path) -> None:
    """Writes the links of a range, as the merge phase does: the second and fourth of every five."""
    nodes = plan.nodes(number, work)
    draw = np.random.default_rng([5, number])
    first, end = (unit * DOCUMENTS_PER_UNIT for unit in plan.first_units[number : number + 2])
    documents = np.arange(first, end)
    documents = documents[np.isin(documents % 5, (1, 3))]
    target = (draw.random(len(documents)) * documents).astype(np.int64) // 5 * 5
    kind = draw.random(len(documents))
    target[kind < BOILERPLATE] = draw.integers(0, 1000, int((kind < BOILERPLATE).sum())) * 5
    is_chained = (kind > 1 - CHAINED) & (target < first)
    links = np.stack([documents, np.where(is_chained, target + 1, target)]).astype(np.uint64)
    size = np.uint64(DOCUMENTS_PER_UNIT)
    write_array(nodes.merged, (links // size << np.uint64(32)) + links % size)
    write_array(nodes.settled, np.empty((2, 0), np.uint64))
    write_array(
        work / "copies" / "exact_duplicates" / f"{number:06}.npy", np.empty((2, 0), np.uint64)
    )


def look_up(folder: Path, units: int) -> None:
    """Finds documents and what they repeat, all over the corpus."""
    manifest = Manifest(folder, "made", "", {}, "uint16", {}, {})
    for number in range(LOOKUPS):
        unit, row = units * number // LOOKUPS, (DOCUMENTS_PER_UNIT * number // LOOKUPS) // 5 * 5 + 1
        duplicates = Duplicates(manifest)
        (copy,) = duplicates.find(f"part-{unit:05}.jsonl:{row}")
        original = duplicates.original(copy)
        assert copy.reason == matching.NEAR
        assert original is not None
        assert original.copies > 0


if __name__ == "__main__":
    main()
