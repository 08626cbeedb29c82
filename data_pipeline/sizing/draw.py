"""Reads a corpus and draws a sample in which copies of a document stay together.

Two documents of a sample drawn one by one are a pair of the corpus only rarely: of its pairs, a
hundredth of the documents contains a ten-thousandth. Therefore each document has a key, which is
the smallest hash of its byte sequences, and the sample consists of all documents whose key falls
into a range. Exact copies have the same key. Documents whose sequences overlap by s (Jaccard)
have it with probability s. A key takes a fraction of the time of cleaning a document, so keys are
computed for all documents read. How many documents share a key is then known exactly, and the
sample is divided by this number into strata: a page with a million copies weighs what it should,
whether or not it was drawn.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from conf.text_files import COMPRESSED
from data_pipeline.cleaning.chain import utf8_size
from data_pipeline.splitmix import mix
from data_pipeline.text.corpus import CorpusConfig, SourceConfig
from data_pipeline.text.readers import Row, read_unit
from data_pipeline.text.units import Unit, name_hash

SEQUENCE = 8
"""Bytes of a sequence that is hashed for the key of a document."""
FACTOR = np.uint64(0x9E3779B97F4A7C15)
SAMPLE_BYTES, SOURCE_BYTES = 32_000_000, 1_000_000
"""Text that a sample takes if no share is given: of all sources, and at least of each."""
EXPANSION = 3
"""Assumed size of text relative to its compressed file, which only affects the default share."""
COPIES = (2, 3, 10, 100)
"""Bounds between the classes of documents, by the number of documents with the same key."""


@dataclass(frozen=True)
class Part:
    """The key and size of each row of a unit, and the rows that are in the sample.

    Attributes:
        unit: number of the unit.
        keys: key of each row.
        sizes: number of UTF-8 bytes of each row's text.
        chosen: numbers of the rows in the sample.
        rows: the rows in the sample.
        malformed: number of rows that cannot be used.
        read_seconds: CPU seconds of reading, without the keys.
    """

    unit: int
    keys: NDArray[np.uint64]
    sizes: NDArray[np.int64]
    chosen: NDArray[np.int64]
    rows: list[Row]
    malformed: int
    read_seconds: float


@dataclass
class Stratum:
    """The rows of a source whose key occurs about equally often.

    Attributes:
        source: name of the source.
        documents, bytes: number and size of all rows that were read.
        repeated: number of these rows whose key another row before them has.
        drawn: fraction of the keys in the sample.
        rows: the rows in the sample.
        keys, sizes: key and size of each row in the sample.
    """

    source: str
    documents: int
    bytes: int
    drawn: float
    repeated: float = 0.0
    rows: list[Row] = field(default_factory=list)
    keys: NDArray[np.uint64] = field(default_factory=lambda: np.empty(0, np.uint64))
    sizes: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))


def key_of(text: str) -> int:
    """Returns the key of a text, which is in [0, 2^64)."""
    raw = text.encode()
    if len(raw) < SEQUENCE:
        return int.from_bytes(hashlib.blake2b(raw, digest_size=8).digest(), "little")
    least = np.uint64(2**64 - 1)
    for start in range(min(SEQUENCE, len(raw) - SEQUENCE + 1)):
        words = np.frombuffer(raw, "<u8", (len(raw) - start) // SEQUENCE, start)
        least = min(least, (words * FACTOR).min())
    return int(mix(np.array([least], np.uint64))[0])


def overlap(a: str, b: str) -> float:
    """Returns the Jaccard similarity of the byte sequences of two texts."""
    if a == b:
        return 1.0
    one, other = _sequences(a.encode()), _sequences(b.encode())
    both = len(np.intersect1d(one, other, assume_unique=True))
    return both / max(1, len(one) + len(other) - both)


def _sequences(raw: bytes) -> NDArray[np.uint64]:
    parts = [
        np.frombuffer(raw, "<u8", (len(raw) - start) // SEQUENCE, start)
        for start in range(min(SEQUENCE, max(0, len(raw) - SEQUENCE + 1)))
    ]
    return np.unique(np.concatenate([np.empty(0, np.uint64), *parts]))


def shares_of(corpus: CorpusConfig, units: list[Unit], given: float | None) -> dict[str, float]:
    """Returns the share of the documents of each source to put into the sample."""
    if given is not None:
        return dict.fromkeys(corpus.sources, given)
    sizes = dict.fromkeys(corpus.sources, 0)
    for unit in units:
        packed = unit.files[0].path.endswith((*COMPRESSED, ".parquet"))
        sizes[unit.source] += unit.bytes * (EXPANSION if packed else 1)
    whole = max(1, sum(sizes.values()))
    least = {source: SOURCE_BYTES / max(1, size) for source, size in sizes.items()}
    return {source: min(1.0, max(SAMPLE_BYTES / whole, least[source])) for source in sizes}


def units_to_read(units: list[Unit], read_bytes: int) -> list[Unit]:
    """Returns units of every source with about `read_bytes` in all, chosen by a hash."""
    whole = sum(unit.bytes for unit in units)
    if whole <= read_bytes:
        return units
    chosen: set[int] = set()
    for source in {unit.source for unit in units}:
        own = [unit for unit in units if unit.source == source]
        left = sum(unit.bytes for unit in own) * read_bytes / whole
        for unit in sorted(own, key=lambda u: name_hash(f"plan:{u.source}:{u.number}")):
            chosen.add(unit.id)
            left -= unit.bytes
            if left <= 0:
                break
    return [unit for unit in units if unit.id in chosen]


def read_parts(
    units: list[Unit], corpus: CorpusConfig, shares: dict[str, float], workers: int
) -> Iterator[Part]:
    """Yields what `read_part` returns for each unit, in order, from several processes."""
    tasks = [(unit, corpus.sources[unit.source], shares[unit.source]) for unit in units]
    count = min(len(units), workers or len(os.sched_getaffinity(0)))
    if count <= 1:
        for task in tasks:
            yield read_part(*task)
        return
    context = multiprocessing.get_context("forkserver")
    with ProcessPoolExecutor(count, mp_context=context) as pool:
        yield from pool.map(read_part, *zip(*tasks, strict=True))


def read_part(unit: Unit, source: SourceConfig, share: float) -> Part:
    """Reads a unit and returns its keys and its part of the sample."""
    limit = round(share * 2**64)
    keys: list[int] = []
    sizes: list[int] = []
    chosen: list[int] = []
    rows: list[Row] = []
    malformed = 0
    started, apart = time.process_time(), 0.0
    for number, row in enumerate(read_unit(unit, source)):
        paused = time.process_time()
        malformed += bool(row.flaw)
        keys.append(key_of(f"{row.file}#{row.position}" if row.flaw else row.text))
        sizes.append(utf8_size(row.text))
        if keys[-1] < limit:
            chosen.append(number)
            rows.append(row)
        apart += time.process_time() - paused
    seconds = time.process_time() - started - apart
    return Part(
        unit.id,
        np.array(keys, np.uint64),
        np.array(sizes, np.int64),
        np.array(chosen, np.int64),
        rows,
        malformed,
        seconds,
    )


def strata_of(parts: Iterable[Part], units: list[Unit], shares: dict[str, float]) -> list[Stratum]:
    """Returns the strata of all sources, in the order of the sources; empty ones are left out."""
    parts = list(parts)
    sources = {unit.id: unit.source for unit in units}
    keys = np.concatenate([np.empty(0, np.uint64), *(part.keys for part in parts)])
    _, inverse, counts = np.unique(keys, return_inverse=True, return_counts=True)
    classes = np.searchsorted(COPIES, counts[inverse], "right")
    repeated = 1 - 1 / counts[inverse]
    found: list[Stratum] = []
    for source in dict.fromkeys(sources[part.unit] for part in parts):
        for number in range(len(COPIES) + 1):
            stratum = Stratum(source, 0, 0, shares[source])
            drawn_keys, drawn_sizes = [stratum.keys], [stratum.sizes]
            start = 0
            for part in parts:
                rows = slice(start, start := start + len(part.keys))
                if sources[part.unit] != source:
                    continue
                own = classes[rows] == number
                stratum.repeated += float(repeated[rows][own].sum())
                stratum.documents += int(own.sum())
                stratum.bytes += int(part.sizes[own].sum())
                is_drawn = own[part.chosen]
                stratum.rows += [row for row, yes in zip(part.rows, is_drawn, strict=True) if yes]
                drawn_keys.append(part.keys[part.chosen[is_drawn]])
                drawn_sizes.append(part.sizes[part.chosen[is_drawn]])
            if stratum.documents:
                stratum.keys = np.concatenate(drawn_keys)
                stratum.sizes = np.concatenate(drawn_sizes)
                found.append(stratum)
    return found
