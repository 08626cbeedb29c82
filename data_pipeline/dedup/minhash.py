"""Finds near duplicates with MinHash and locality-sensitive hashing (Broder, 1997).

This takes three stages:

1. `write_signatures` computes the signatures of the documents of one unit.
2. `match_keys` finds the documents that share a key, in a range of the keys of one bucket, across
   all units.
3. `components` clusters the matches. The first document of each cluster, by unit and number, is
   kept.

The method is that of datatrove (n-grams of normalized words, buckets of minima), but its code is
not used: its second stage opens the signatures of all units at once, which reaches the limit of
open files at a few hundred gigabytes of text. It also stores all minima of a bucket, while this
module stores only a 64-bit hash of them (168 instead of 952 bytes per document).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from conf.files import write_atomically
from data_pipeline.cleaning.config import DedupOptions
from data_pipeline.cleaning.ngrams import n_grams, word_hashes, words
from data_pipeline.dedup.components import Links, links_to_first, sort_links
from data_pipeline.dedup.earlier import ROWS_AT_ONCE, FirstDocuments
from data_pipeline.dedup.ranges import RANGES, range_starts
from data_pipeline.splitmix import UInts, mix

NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
N_GRAMS_AT_ONCE = 1024
"""Number of n-grams permuted at a time, chosen so that they fit into the cache of a CPU core."""
SEED = 1
KEYS_AT_ONCE = 1 << 20
"""Number of keys sorted at a time. The time per key grows with their number."""


def write_signatures(
    texts: Iterable[str], path: Path, options: DedupOptions, salt: int = 0
) -> None:
    """Writes the signatures of a unit's documents (stage 1).

    Documents are counted from 0 in the order of `texts`. A text of fewer than `n_grams` words has
    no signature, so it is never a near duplicate. Texts with another `salt` do not match.
    """
    keys: list[UInts] = []
    numbers: list[int] = []
    for number, text in enumerate(texts):
        grams = shingles(text, options.n_grams)
        if len(grams):
            keys.append(signature(grams, options.buckets, options.hashes_per_bucket))
            numbers.append(number)
    table = np.array(keys, np.uint64).reshape(-1, options.buckets).T ^ np.uint64(salt)
    save_signatures(path, table, np.array(numbers, np.uint32))


def shingles(text: str, n: int) -> UInts:
    """Returns the hash of each run of n words of a text, in which all numbers count as one word."""
    return n_grams(word_hashes(words(NUMBER.sub("0", text))), n)


def similarity(text: str, other: str, n: int) -> float:
    """Returns the Jaccard similarity of the sets of n-grams that signatures are made from.

    Two texts without any n-gram have a similarity of 1 if they are equal, else 0.
    """
    one, two = np.unique(shingles(text, n)), np.unique(shingles(other, n))
    shared = len(np.intersect1d(one, two, assume_unique=True))
    union = len(one) + len(two) - shared
    return shared / union if union else float(text == other)


def save_signatures(path: Path, keys: UInts, numbers: NDArray[np.uint32]) -> None:
    """Writes a file of signatures, given keys of shape (buckets, signatures) and their documents.

    For each bucket, the file contains where each range of keys begins (RANGES + 1 numbers), then
    for each bucket the sorted keys, and then for each bucket the documents that they belong to.
    """
    order = np.argsort(keys, axis=1, kind="stable")
    table = np.take_along_axis(keys, order, 1)
    starts = np.array([range_starts(row) for row in table], np.uint32)
    content = (starts, table, numbers[order])
    write_atomically(path, lambda file: file.writelines(part.tobytes() for part in content))


def signature(grams: UInts, buckets: int, hashes: int) -> UInts:
    """Returns one 64-bit key per bucket, which combines the bucket's minima over all n-grams."""
    factors, weights = _factors(buckets, hashes)
    least = np.full(buckets * hashes, np.iinfo(np.uint64).max, np.uint64)
    for start in range(0, len(grams), N_GRAMS_AT_ONCE):
        # Multiplication by an odd number permutes 64-bit hashes.
        permuted = factors * grams[start : start + N_GRAMS_AT_ONCE]
        np.minimum(least, permuted.min(axis=1), out=least)
    return mix((least.reshape(buckets, hashes) * weights).sum(axis=1, dtype=np.uint64))


def match_keys(
    bucket: int,
    first: int,
    end: int,
    units: Sequence[tuple[int, Path]],
    options: DedupOptions,
    earlier: Iterable[tuple[int, Path]] | None = None,
) -> Links:
    """Returns links between the documents that share a key of a bucket (stage 2).

    Covers the ranges of keys from `first` to `end`, exclusive, in the signatures of `units`, given
    as (number, path). Each document that shares its key with an earlier one is linked to the first
    document with that key. A document is the unit's number times 2^32 plus its own.

    `earlier` are units of earlier preparations, also as (number, path). The first new document with
    a key that an earlier one has is linked to the first of those.
    """
    parts: list[tuple[NDArray[np.int64], NDArray[np.uint64], NDArray[np.uint64]]] = []
    for unit, path in units:
        with path.open("rb") as file:
            starts, *where = _locate(file, bucket, options.buckets)
            rows = slice(int(starts[first]), int(starts[end]))
            keys, numbers = _read_rows(file, rows, *where)
        parts.append((starts[first : end + 1] - rows.start, keys, numbers | _node(unit)))
    total = sum(len(keys) for _, keys, _ in parts)
    pieces = [np.empty((2, 0), np.uint64)]
    firsts = [np.empty((2, 0), np.uint64)]
    for low, high in pairwise(_cuts(end - first, total)):
        held = [(keys[s[low] : s[high]], rows[s[low] : s[high]]) for s, keys, rows in parts]
        if held:
            key, documents = map(np.concatenate, zip(*held, strict=True))
            # Documents are in ascending order, which a stable sort retains for each key.
            order = np.argsort(key, kind="stable")
            key, documents = key[order], documents[order]
            same = key[1:] == key[:-1]
            pieces.append(links_to_first(documents, same))
            if earlier is not None:
                is_first = np.concatenate([[True], ~same])[: len(key)]
                firsts.append(np.stack([key[is_first], documents[is_first]]))
    del parts
    if earlier is not None:
        unique, documents = np.concatenate(firsts, 1)
        del firsts
        table = FirstDocuments(unique)
        for unit, path in earlier:
            with path.open("rb") as file:
                starts, *where = _locate(file, bucket, options.buckets)
                for start in range(int(starts[first]), int(starts[end]), ROWS_AT_ONCE):
                    rows = slice(start, min(start + ROWS_AT_ONCE, int(starts[end])))
                    keys, numbers = _read_rows(file, rows, *where)
                    table.look_up(keys, numbers | _node(unit))
        pieces.append(table.links(documents))
    return sort_links(np.concatenate(pieces, 1))


def _node(unit: int) -> np.uint64:
    """Returns the number of the first document of a unit."""
    return np.uint64(unit << 32)


def _locate(file: IO[bytes], bucket: int, buckets: int) -> tuple[NDArray[np.int64], int, int]:
    """Returns where the ranges of a bucket begin, and the offsets of its keys and documents."""
    starts = _read(file, "<u4", 4 * bucket * (RANGES + 1), RANGES + 1).astype(np.int64)
    size = int(starts[-1])
    table = 4 * buckets * (RANGES + 1)
    return starts, table + 8 * size * bucket, table + 8 * size * buckets + 4 * size * bucket


def _read_rows(
    file: IO[bytes], rows: slice, keys_offset: int, documents_offset: int
) -> tuple[UInts, NDArray[np.unsignedinteger]]:
    """Returns some of the keys of a bucket and their documents."""
    start, count = rows.start, rows.stop - rows.start
    keys = _read(file, "<u8", keys_offset + 8 * start, count)
    return keys, _read(file, "<u4", documents_offset + 4 * start, count)


def _cuts(ranges: int, total: int) -> list[int]:
    """Returns where to cut ranges of keys, so that few enough are sorted at a time."""
    pieces = min(ranges, total // KEYS_AT_ONCE + 1)
    return [ranges * piece // pieces for piece in range(pieces + 1)]


def _read(file: IO[bytes], dtype: str, offset: int, count: int) -> NDArray[np.unsignedinteger]:
    file.seek(offset)
    return np.fromfile(file, dtype, count)


@lru_cache
def _factors(buckets: int, hashes: int) -> tuple[UInts, UInts]:
    generator = np.random.Generator(np.random.PCG64(SEED))
    count = buckets * hashes
    odd = generator.integers(0, 2**63, count + hashes, np.uint64) * np.uint64(2) + np.uint64(1)
    return odd[:count, None], odd[count:]
