"""The first pass over the text, which writes a sorted table of document digests for each unit.

Each unit also records where each of 256 ranges of digests begins in its table. A task of `matching`
compares certain ranges across all units, so the work can be spread over processes and machines, and
none of them has to hold the digests of the whole corpus.
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
from data_pipeline.dedup.ranges import range_starts
from data_pipeline.files import write_array
from data_pipeline.text.corpus import CorpusConfig
from data_pipeline.text.selection import Selection
from data_pipeline.text.units import Unit

DIGEST = np.dtype([("high", "<u8"), ("low", "<u8"), ("number", "<u4")])
EXACT, NEAR = "exact_duplicates", "near_duplicates"


def is_enabled(corpus: CorpusConfig) -> bool:
    """Returns True if any kind of deduplication is enabled."""
    return bool(step_names(corpus))


def step_names(corpus: CorpusConfig) -> list[str]:
    """Returns the names of a corpus's deduplication steps, as used in the cleaning report."""
    dedup = corpus.cleaning.dedup
    return [EXACT] * dedup.exact + [NEAR] * dedup.minhash


def scan_unit(unit: Unit, corpus: CorpusConfig, work: Path) -> dict[str, Any]:
    """Reads a unit, writes its table of digests, and returns the counts that `load_scan` reads."""
    selection = Selection(unit, corpus)
    dedup = corpus.cleaning.dedup
    # Documents of different sources match only if their digests and keys have the same salt.
    salt = b"" if dedup.across_sources else hashlib.sha256(unit.source.encode()).digest()[:16]
    digests: list[bytes] = []
    numbers: list[int] = []

    def texts() -> Iterator[str]:
        for number, row in selection.documents():
            raw = row.text.encode()
            digests.append(hashlib.blake2b(raw, digest_size=16, person=salt).digest())
            numbers.append(number)
            yield row.text

    if dedup.minhash:
        from data_pipeline.dedup import minhash

        path = signatures_path(work, unit.id)
        minhash.write_signatures(texts(), path, dedup, int.from_bytes(salt[:8], "little"))
    else:
        for _ in texts():
            pass
    table = np.empty(len(numbers), DIGEST)
    halves = np.frombuffer(b"".join(digests), "<u8").reshape(-1, 2)
    table["high"], table["low"], table["number"] = halves[:, 0], halves[:, 1], numbers
    table.sort(order=["high", "low", "number"])
    starts = range_starts(np.ascontiguousarray(table["high"]))
    write_array(table_path(work, unit.id), table)
    return {
        "documents": len(numbers),
        "lines": selection.lines,
        "starts": starts.tolist(),
        "counts": dict(selection.counts),
        "report": selection.report.to_json(),
        "malformed": selection.malformed,
    }


def load_scan(unit: Unit, corpus: CorpusConfig, work: Path) -> tuple[NDArray[np.int64], Selection]:
    """Returns the sorted numbers of the documents that `scan_unit` kept, and the selection."""
    result = scan_result(work, unit.id)
    selection = Selection(unit, corpus)
    selection.counts.update(result["counts"])
    selection.report = CleaningReport.from_json(result["report"])
    selection.malformed = result["malformed"]
    selection.lines = result["lines"]
    numbers = np.sort(np.load(table_path(work, unit.id))["number"]).astype(np.int64)
    return numbers, selection


def scan_result(work: Path, unit: int) -> dict[str, Any]:
    """Returns the result of `scan_unit` for a unit, read from the work folder."""
    result: dict[str, Any] = json.loads((work / "scan" / f"{unit:06}.json").read_text())
    return result


def table_path(work: Path, unit: int) -> Path:
    """Returns the path of a unit's table of digests."""
    return work / "scan" / f"{unit:06}.npy"


def signatures_path(work: Path, unit: int) -> Path:
    """Returns the path of a unit's MinHash signatures."""
    return work / "minhash" / f"{unit:06}.keys"
