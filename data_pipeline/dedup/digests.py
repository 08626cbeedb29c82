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
from data_pipeline.cleaning.urls import normalized_url
from data_pipeline.dedup.paragraph_tables import ParagraphTable, scanned_path
from data_pipeline.dedup.ranges import range_starts
from data_pipeline.files import write_array
from data_pipeline.text.corpus import CorpusConfig
from data_pipeline.text.selection import Selection
from data_pipeline.text.units import Unit

DIGEST = np.dtype([("high", "<u8"), ("low", "<u8"), ("number", "<u4")])
URL, EXACT, NEAR = "url_duplicates", "exact_duplicates", "near_duplicates"
REPEATED = "repeated_paragraphs"
ROW = np.dtype([("number", "<u4"), ("line", "<u4"), ("position", "<u8")])
"""The place of a document in its unit: the number of its row, its line, and its position."""


def is_enabled(corpus: CorpusConfig) -> bool:
    """Returns True if any kind of deduplication is enabled."""
    return bool(step_names(corpus)) or corpus.cleaning.dedup.paragraphs


def step_names(corpus: CorpusConfig) -> list[str]:
    """Returns the names of a corpus's deduplication steps, as used in the cleaning report."""
    dedup = corpus.cleaning.dedup
    return [URL] * dedup.url + [EXACT] * dedup.exact + [NEAR] * dedup.minhash


def scan_unit(unit: Unit, corpus: CorpusConfig, work: Path) -> dict[str, Any]:
    """Reads a unit, writes its tables, and returns the counts that `load_scan` reads.

    A document has the number of documents before it that were kept, in all tables but that of rows.
    """
    selection = Selection(unit, corpus)
    dedup = corpus.cleaning.dedup
    # Documents of different sources match only if their digests and keys have the same salt.
    salt = b"" if dedup.across_sources else hashlib.sha256(unit.source.encode()).digest()[:16]
    digests: list[bytes] = []
    rows: list[tuple[int, int, int]] = []
    url_digests: list[bytes] = []
    url_numbers: list[int] = []
    paragraphs = ParagraphTable(dedup, salt) if dedup.paragraphs else None

    def texts() -> Iterator[str]:
        for number, row in selection.documents():
            digests.append(_digest(row.text, salt))
            url = normalized_url(row.url) if dedup.url and row.url else ""
            if url:
                url_digests.append(_digest(url, salt))
                url_numbers.append(len(rows))
            if paragraphs is not None:
                paragraphs.add(number, row.text)
            rows.append((number, row.line, row.position))
            yield row.text

    if dedup.minhash:
        from data_pipeline.dedup import minhash

        path = signatures_path(work, unit.id)
        minhash.write_signatures(texts(), path, dedup, int.from_bytes(salt[:8], "little"))
    else:
        for _ in texts():
            pass
    starts = {EXACT: _write_table(table_path(work, unit.id), digests, list(range(len(rows))))}
    if dedup.url:
        path = table_path(work, unit.id, URL)
        starts[URL] = _write_table(path, url_digests, url_numbers)
    if paragraphs is not None:
        paragraphs.write(scanned_path(work, unit.id))
    write_array(rows_path(work, unit.id), np.array(rows, ROW))
    return {
        "documents": len(rows),
        "paragraphs": 0 if paragraphs is None else len(paragraphs),
        "lines": selection.lines,
        "starts": starts,
        "counts": dict(selection.counts),
        "report": selection.report.to_json(),
        "malformed": selection.malformed,
    }


def _digest(text: str, salt: bytes) -> bytes:
    raw = text.encode("utf-8", "surrogatepass")
    return hashlib.blake2b(raw, digest_size=16, person=salt).digest()


def _write_table(path: Path, digests: list[bytes], numbers: list[int]) -> list[int]:
    """Writes a sorted table of digests, and returns where each range of them begins."""
    table = np.empty(len(numbers), DIGEST)
    halves = np.frombuffer(b"".join(digests), "<u8").reshape(-1, 2)
    table["high"], table["low"], table["number"] = halves[:, 0], halves[:, 1], numbers
    table.sort(order=["high", "low", "number"])
    write_array(path, table)
    starts: list[int] = range_starts(np.ascontiguousarray(table["high"])).tolist()
    return starts


def load_scan(unit: Unit, corpus: CorpusConfig, work: Path) -> tuple[NDArray[np.int64], Selection]:
    """Returns the sorted numbers of the documents that `scan_unit` kept, and the selection."""
    result = scan_result(work, unit.id)
    selection = Selection(unit, corpus)
    selection.counts.update(result["counts"])
    selection.report = CleaningReport.from_json(result["report"])
    selection.malformed = result["malformed"]
    selection.lines = result["lines"]
    numbers = np.load(rows_path(work, unit.id))["number"].astype(np.int64)
    return numbers, selection


def scan_result(work: Path, unit: int) -> dict[str, Any]:
    """Returns the result of `scan_unit` for a unit, read from the work folder."""
    result: dict[str, Any] = json.loads((work / "scan" / f"{unit:06}.json").read_text())
    return result


def table_path(work: Path, unit: int, kind: str = EXACT) -> Path:
    """Returns the path of a unit's table of digests of texts, or of URLs if `kind` is URL."""
    return work / ("urls" if kind == URL else "scan") / f"{unit:06}.npy"


def rows_path(work: Path, unit: int) -> Path:
    """Returns the path of the table of a unit's documents, in the order in which they were read."""
    return work / "scan" / f"{unit:06}.rows.npy"


def signatures_path(work: Path, unit: int) -> Path:
    """Returns the path of a unit's MinHash signatures."""
    return work / "minhash" / f"{unit:06}.keys"
