"""Copies inside a corpus: exact ones by the digests of all documents, near ones by MinHash.

The first pass over the text (`scan_unit`) leaves of each unit a table of digests, sorted, with the
places where each of 256 ranges begins. A range is then compared over all units in one task, so the
work spreads over processes and machines and none holds the whole corpus. The first document, by
unit and number, stays.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_pipeline.cleaning.report import CleaningReport
from data_pipeline.files import write_array
from data_pipeline.text.corpus import CorpusConfig
from data_pipeline.text.selection import Selection
from data_pipeline.text.units import Unit

RANGES = 256
DOCUMENTS_A_TASK = 20_000_000
DIGEST = np.dtype([("high", "<u8"), ("low", "<u8"), ("number", "<u4")])
DROP = np.dtype([("unit", "<u4"), ("number", "<u4")])
EXACT, NEAR = "exact_duplicates", "near_duplicates"


def needed(corpus: CorpusConfig) -> bool:
    """Whether copies are looked for at all."""
    return corpus.cleaning.dedup.exact or corpus.cleaning.dedup.minhash


def steps(corpus: CorpusConfig) -> list[str]:
    """The searches for copies, as the report names them."""
    dedup = corpus.cleaning.dedup
    return [EXACT] * dedup.exact + [NEAR] * dedup.minhash


def scan_unit(unit: Unit, corpus: CorpusConfig, work: Path) -> dict[str, Any]:
    """Reads a unit and writes its table of digests; returns what `load_scan` needs besides."""
    selection = Selection(unit, corpus)
    dedup = corpus.cleaning.dedup
    person = b"" if dedup.across_sources else hashlib.sha256(unit.source.encode()).digest()[:16]
    digests: list[bytes] = []
    numbers: list[int] = []

    def texts() -> Iterator[str]:
        for number, row in selection.documents():
            raw = row.text.encode()
            digests.append(hashlib.blake2b(raw, digest_size=16, person=person).digest())
            numbers.append(number)
            yield row.text

    if dedup.minhash:
        from data_pipeline.dedup import minhash

        minhash.write_signatures(texts(), unit.id, signatures(work, corpus, unit.source), dedup)
    else:
        for _ in texts():
            pass
    table = np.empty(len(numbers), DIGEST)
    halves = np.frombuffer(b"".join(digests), "<u8").reshape(-1, 2)
    table["high"], table["low"], table["number"] = halves[:, 0], halves[:, 1], numbers
    table.sort(order=["high", "low", "number"])
    borders = np.arange(RANGES, dtype=np.uint64) << np.uint64(56)
    starts = np.searchsorted(np.ascontiguousarray(table["high"]), borders)
    write_array(_table(work, unit.id), table)
    return {
        "documents": len(numbers),
        "lines": selection.lines,
        "starts": [*starts.tolist(), len(numbers)],
        "counts": dict(selection.counts),
        "report": selection.report.to_json(),
        "malformed": selection.malformed,
    }


def load_scan(unit: Unit, corpus: CorpusConfig, work: Path) -> tuple[NDArray[np.int64], Selection]:
    """The numbers of the documents that the first pass kept, sorted, and what it counted."""
    about = json.loads(_about(work, unit.id).read_text())
    selection = Selection(unit, corpus)
    selection.counts.update(about["counts"])
    selection.report = CleaningReport.from_json(about["report"])
    selection.malformed = about["malformed"]
    selection.lines = about["lines"]
    numbers = np.sort(np.load(_table(work, unit.id))["number"]).astype(np.int64)
    return numbers, selection


def exact_tasks(units: list[Unit], work: Path) -> int:
    """Into how many tasks the comparison is cut: a power of two."""
    documents = sum(json.loads(_about(work, u.id).read_text())["documents"] for u in units)
    tasks = 1
    while tasks < RANGES and documents > tasks * DOCUMENTS_A_TASK:
        tasks *= 2
    return tasks


def match_exact(task: int, tasks: int, units: list[Unit], work: Path) -> None:
    """Writes the exact copies whose digests lie in this task's share of the ranges."""
    first, end = RANGES * task // tasks, RANGES * (task + 1) // tasks
    parts, owners = [], []
    for unit in units:
        starts = json.loads(_about(work, unit.id).read_text())["starts"]
        part = np.load(_table(work, unit.id), mmap_mode="r")[starts[first] : starts[end]]
        parts.append(np.array(part))
        owners.append(np.full(len(part), unit.id, np.uint32))
    table = np.concatenate(parts) if parts else np.empty(0, DIGEST)
    owner = np.concatenate(owners) if owners else np.empty(0, np.uint32)
    order = np.lexsort((table["number"], owner, table["low"], table["high"]))
    table, owner = table[order], owner[order]
    same = np.zeros(len(table), bool)
    same[1:] = (table["high"][1:] == table["high"][:-1]) & (table["low"][1:] == table["low"][:-1])
    _write_drops(work / "copies" / f"{EXACT}-{task:03}.npy", owner[same], table["number"][same])


def match_near(task: int, tasks: int, corpus: CorpusConfig, work: Path) -> None:
    """One task of the search for near copies; tasks are a multiple of the number of buckets."""
    from data_pipeline.dedup import minhash

    for folder in _signature_folders(corpus, work):
        minhash.match_bucket(task, tasks, folder, corpus.cleaning.dedup)


def resolve_near(units: list[Unit], corpus: CorpusConfig, work: Path) -> None:
    """Writes which near copies go, by their numbers in the units."""
    from data_pipeline.dedup import minhash

    owners, numbers = [], []
    for folder in _signature_folders(corpus, work):
        found = np.asarray(minhash.resolve(folder, corpus.cleaning.dedup), np.int64).reshape(-1, 2)
        for unit in np.unique(found[:, 0]):
            kept, _ = load_scan(units[int(unit)], corpus, work)
            inside = found[found[:, 0] == unit, 1]
            owners.append(np.full(len(inside), unit, np.uint32))
            numbers.append(kept[inside].astype(np.uint32))
    empty = np.empty(0, np.uint32)
    _write_drops(
        work / "copies" / f"{NEAR}.npy",
        np.concatenate([empty, *owners]),
        np.concatenate([empty, *numbers]),
    )


def dropped_of(unit: Unit, work: Path) -> dict[int, str]:
    """The copies in a unit: its documents' numbers, and which kind each is."""
    dropped: dict[int, str] = {}
    for path in sorted((work / "copies").glob("*.npy"), reverse=True):  # exact ones last: they win
        table = np.load(path, mmap_mode="r")
        owner = np.ascontiguousarray(table["unit"])
        low, high = np.searchsorted(owner, [unit.id, unit.id + 1])
        kind = EXACT if path.name.startswith(EXACT) else NEAR
        dropped |= dict.fromkeys(table["number"][low:high].tolist(), kind)
    return dropped


def signatures(work: Path, corpus: CorpusConfig, source: str) -> Path:
    """The folder of the signatures that a source's documents are compared with."""
    name = "all" if corpus.cleaning.dedup.across_sources else source
    return work / "minhash" / name


def _signature_folders(corpus: CorpusConfig, work: Path) -> list[Path]:
    return sorted({signatures(work, corpus, source) for source in corpus.sources})


def _write_drops(path: Path, units: NDArray[np.uint32], numbers: NDArray[np.uint32]) -> None:
    table = np.empty(len(units), DROP)
    table["unit"], table["number"] = units, numbers
    table.sort(order=["unit", "number"])
    write_array(path, table)


def _table(work: Path, unit: int) -> Path:
    return work / "scan" / f"{unit:06}.npy"


def _about(work: Path, unit: int) -> Path:
    return work / "scan" / f"{unit:06}.json"
