"""Compares digests and signatures across all units, and decides which documents to drop."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_pipeline.dedup.digests import (
    DIGEST,
    EXACT,
    NEAR,
    RANGES,
    load_scan,
    scan_result,
    signature_folder,
    table_path,
)
from data_pipeline.files import write_array
from data_pipeline.text.corpus import CorpusConfig
from data_pipeline.text.units import Unit

DOCUMENTS_PER_TASK = 20_000_000
DROP = np.dtype([("unit", "<u4"), ("number", "<u4")])


def count_exact_tasks(units: list[Unit], work: Path) -> int:
    """Returns the number of tasks for finding exact duplicates, which is a power of two."""
    documents = sum(scan_result(work, unit.id)["documents"] for unit in units)
    tasks = 1
    while tasks < RANGES and documents > tasks * DOCUMENTS_PER_TASK:
        tasks *= 2
    return tasks


def match_exact(task: int, tasks: int, units: list[Unit], work: Path) -> None:
    """Writes which exact duplicates to drop among the digests in this task's ranges."""
    first, end = RANGES * task // tasks, RANGES * (task + 1) // tasks
    parts, owners = [], []
    for unit in units:
        starts = scan_result(work, unit.id)["starts"]
        part = np.load(table_path(work, unit.id), mmap_mode="r")[starts[first] : starts[end]]
        parts.append(np.array(part))
        owners.append(np.full(len(part), unit.id, np.uint32))
    table = np.concatenate(parts) if parts else np.empty(0, DIGEST)
    owner = np.concatenate(owners) if owners else np.empty(0, np.uint32)
    order = np.lexsort((table["number"], owner, table["low"], table["high"]))
    table, owner = table[order], owner[order]
    same = np.zeros(len(table), bool)
    same[1:] = (table["high"][1:] == table["high"][:-1]) & (table["low"][1:] == table["low"][:-1])
    _write_drops(_drops_folder(work) / f"{EXACT}-{task:03}.npy", owner[same], table["number"][same])


def match_near(task: int, tasks: int, corpus: CorpusConfig, work: Path) -> None:
    """Runs one task of matching near duplicates. `tasks` is a multiple of the number of buckets."""
    from data_pipeline.dedup import minhash

    for folder in _signature_folders(corpus, work):
        minhash.match_bucket(task, tasks, folder, corpus.cleaning.dedup)


def resolve_near(units: list[Unit], corpus: CorpusConfig, work: Path) -> None:
    """Writes which near duplicates to drop, by unit and document number."""
    from data_pipeline.dedup import minhash

    owners, numbers = [], []
    for folder in _signature_folders(corpus, work):
        found = minhash.resolve(folder)
        for unit in np.unique(found[:, 0]):
            kept, _ = load_scan(units[int(unit)], corpus, work)
            inside = found[found[:, 0] == unit, 1]
            owners.append(np.full(len(inside), unit, np.uint32))
            numbers.append(kept[inside].astype(np.uint32))
    empty = np.empty(0, np.uint32)
    _write_drops(
        _drops_folder(work) / f"{NEAR}.npy",
        np.concatenate([empty, *owners]),
        np.concatenate([empty, *numbers]),
    )


def duplicates_in(unit: Unit, work: Path) -> dict[int, str]:
    """Returns the numbers of the documents to drop from a unit, mapped to EXACT or NEAR."""
    dropped: dict[int, str] = {}
    # The order is reversed so that EXACT overwrites NEAR.
    for path in sorted(_drops_folder(work).glob("*.npy"), reverse=True):
        table = np.load(path, mmap_mode="r")
        owner = np.ascontiguousarray(table["unit"])
        low, high = np.searchsorted(owner, [unit.id, unit.id + 1])
        kind = EXACT if path.name.startswith(EXACT) else NEAR
        dropped |= dict.fromkeys(table["number"][low:high].tolist(), kind)
    return dropped


def _signature_folders(corpus: CorpusConfig, work: Path) -> list[Path]:
    return sorted({signature_folder(work, corpus, source) for source in corpus.sources})


def _drops_folder(work: Path) -> Path:
    return work / "copies"


def _write_drops(path: Path, units: NDArray[np.uint32], numbers: NDArray[np.uint32]) -> None:
    table = np.empty(len(units), DROP)
    table["unit"], table["number"] = units, numbers
    table.sort(order=["unit", "number"])
    write_array(path, table)
