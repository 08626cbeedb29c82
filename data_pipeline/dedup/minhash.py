"""Near copies by MinHash and locality-sensitive hashing (Broder, 1997), in three stages.

Signatures of the documents of one unit; matches in one range of one bucket, over all units;
clusters of all. Of each cluster the first document stays, by unit and number.

The method is datatrove's (n-grams of simplified words, buckets of minima), the code is not: its
second stage holds the signatures of every unit open at once, which ends at the limit of open files
after some hundred gigabytes of text, and keeps all minima of a bucket where we keep 64 bits of them
(168 bytes a document instead of 952).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_pipeline.cleaning.config import DedupOptions
from data_pipeline.cleaning.ngrams import UInts, mix, n_grams, word_hashes, words
from data_pipeline.files import write_array

NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
N_GRAMS_AT_ONCE = 1024
"""n-grams that are permuted together: they fit into the cache of a core."""
SEED = 1

Edges = NDArray[np.uint64]


def write_signatures(texts: Iterable[str], unit: int, folder: Path, options: DedupOptions) -> None:
    """Stage 1 for the documents of a unit, which are counted as they come.

    Writes the keys, (buckets, documents), each bucket sorted, and the documents' numbers beside
    them. Texts of fewer than `n_grams` words have no signature and are no near copies.
    """
    keys: list[UInts] = []
    numbers: list[int] = []
    for number, text in enumerate(texts):
        grams = n_grams(word_hashes(words(NUMBER.sub("0", text))), options.n_grams)
        if len(grams):
            keys.append(signature(grams, options.buckets, options.hashes_per_bucket))
            numbers.append(number)
    table = np.array(keys, np.uint64).reshape(-1, options.buckets).T
    order = np.argsort(table, axis=1, kind="stable")
    write_array(_keys(folder, unit), np.take_along_axis(table, order, 1))
    write_array(_numbers(folder, unit), np.array(numbers, np.uint32)[order])


def signature(grams: UInts, buckets: int, hashes: int) -> UInts:
    """(buckets,): of each bucket 64 bits made of its `hashes` minima over all n-grams."""
    factors, weights = _factors(buckets, hashes)
    least = np.full(buckets * hashes, np.iinfo(np.uint64).max, np.uint64)
    for at in range(0, len(grams), N_GRAMS_AT_ONCE):
        # A product with an odd number is a permutation of 64-bit hashes.
        permuted = factors * grams[at : at + N_GRAMS_AT_ONCE]
        np.minimum(least, permuted.min(axis=1), out=least)
    return mix((least.reshape(buckets, hashes) * weights).sum(axis=1, dtype=np.uint64))


def match_bucket(task: int, tasks: int, folder: Path, options: DedupOptions) -> None:
    """Stage 2, one of `tasks` parts, a multiple of the number of buckets: writes (pairs, 2) of
    documents with the same key, the first one and each other."""
    parts = tasks // options.buckets
    bucket, part = divmod(task, parts)
    low, high = 2**64 * part // parts, 2**64 * (part + 1) // parts - 1
    keys, documents = [np.empty(0, np.uint64)], [np.empty(0, np.uint64)]
    for unit in sorted(int(path.stem) for path in (folder / "signatures").glob("*.keys")):
        table = np.load(_keys(folder, unit), mmap_mode="r")[bucket]
        start = np.searchsorted(table, np.uint64(low), "left")
        end = np.searchsorted(table, np.uint64(high), "right")
        numbers = np.load(_numbers(folder, unit), mmap_mode="r")[bucket, start:end]
        keys.append(np.array(table[start:end]))
        documents.append(np.uint64(unit << 32) + numbers.astype(np.uint64))
    key, document = np.concatenate(keys), np.concatenate(documents)
    order = np.lexsort((document, key))
    key, document = key[order], document[order]
    new = np.ones(len(key), bool)
    new[1:] = key[1:] != key[:-1]
    first = document[np.flatnonzero(new)][np.cumsum(new) - 1]
    write_array(folder / "matches" / f"{task:06}.npy", np.stack([first, document], 1)[~new])


def resolve(folder: Path, options: DedupOptions) -> NDArray[np.int64]:
    """Stage 3: (unit, document) of all that go, (n, 2), sorted."""
    forest = np.empty((0, 2), np.uint64)
    # One file after the other: what is held is an edge a document that has a copy.
    for path in sorted((folder / "matches").glob("*.npy")):
        forest = clusters(np.concatenate([forest, np.load(path)]))
    gone = forest[:, 1]
    low = gone & np.uint64(0xFFFFFFFF)
    return np.stack([gone >> np.uint64(32), low], 1).astype(np.int64)


def clusters(edges: Edges) -> Edges:
    """Connected components: of each an edge from its least node to each other, (n, 2), sorted by
    the other."""
    nodes, places = np.unique(edges, return_inverse=True)
    label = np.arange(len(nodes))
    a, b = places.reshape(-1, 2).T
    while True:
        one, other = label[a], label[b]
        apart = one != other
        if not apart.any():
            break
        a, b, one, other = a[apart], b[apart], one[apart], other[apart]
        # Each root that has a smaller neighbour goes below the smallest; then all point to roots.
        np.minimum.at(label, np.maximum(one, other), np.minimum(one, other))
        while True:
            above = label[label]
            if np.array_equal(above, label):
                break
            label = above
    others = np.flatnonzero(label != np.arange(len(nodes)))
    return np.stack([nodes[label[others]], nodes[others]], 1)


@lru_cache
def _factors(buckets: int, hashes: int) -> tuple[UInts, UInts]:
    draw = np.random.Generator(np.random.PCG64(SEED))
    count = buckets * hashes
    odd = draw.integers(0, 2**63, count + hashes, np.uint64) * np.uint64(2) + np.uint64(1)
    return odd[:count, None], odd[count:]


def _keys(folder: Path, unit: int) -> Path:
    return folder / "signatures" / f"{unit:06}.keys"


def _numbers(folder: Path, unit: int) -> Path:
    return folder / "signatures" / f"{unit:06}.numbers"
