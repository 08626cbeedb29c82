"""Finds near duplicates with MinHash and locality-sensitive hashing (Broder, 1997).

This takes three stages:

1. `write_signatures` computes the signatures of the documents of one unit.
2. `match_bucket` finds matches in one range of one bucket, across all units.
3. `resolve` clusters all matches. The first document of each cluster, by unit and number, is kept.

The method is that of datatrove (n-grams of normalized words, buckets of minima), but its code is
not used: its second stage opens the signatures of all units at once, which reaches the limit of
open files at a few hundred gigabytes of text. It also stores all minima of a bucket, while this
module stores only a 64-bit hash of them (168 instead of 952 bytes per document).
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
"""Number of n-grams permuted at a time, chosen so that they fit into the cache of a CPU core."""
SEED = 1

Edges = NDArray[np.uint64]


def write_signatures(texts: Iterable[str], unit: int, folder: Path, options: DedupOptions) -> None:
    """Writes the signatures of a unit's documents (stage 1).

    It writes two arrays of shape (buckets, documents): the keys, sorted within each bucket, and the
    number of the document that each key belongs to, counted from 0 in the order of `texts`. A text
    of fewer than `n_grams` words has no signature, so it is never a near duplicate.
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
    """Returns one 64-bit key per bucket, which combines the bucket's minima over all n-grams."""
    factors, weights = _factors(buckets, hashes)
    least = np.full(buckets * hashes, np.iinfo(np.uint64).max, np.uint64)
    for start in range(0, len(grams), N_GRAMS_AT_ONCE):
        # Multiplication by an odd number permutes 64-bit hashes.
        permuted = factors * grams[start : start + N_GRAMS_AT_ONCE]
        np.minimum(least, permuted.min(axis=1), out=least)
    return mix((least.reshape(buckets, hashes) * weights).sum(axis=1, dtype=np.uint64))


def match_bucket(task: int, tasks: int, folder: Path, options: DedupOptions) -> None:
    """Writes the pairs of documents that share a key, for one task (stage 2).

    The array has shape (pairs, 2), with one row for each document that shares a key with an earlier
    one: the first document with that key, and the document itself. `tasks` is a multiple of the
    number of buckets.
    """
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


def resolve(folder: Path) -> NDArray[np.int64]:
    """Returns the documents to drop, as sorted rows (unit, document) of shape (n, 2) (stage 3)."""
    forest = np.empty((0, 2), np.uint64)
    # Reads one file at a time, so memory holds only one edge per document that has a duplicate.
    for path in sorted((folder / "matches").glob("*.npy")):
        forest = clusters(np.concatenate([forest, np.load(path)]))
    dropped = forest[:, 1]
    low = dropped & np.uint64(0xFFFFFFFF)
    return np.stack([dropped >> np.uint64(32), low], 1).astype(np.int64)


def clusters(edges: Edges) -> Edges:
    """Returns the connected components of a graph that is given by its edges, (edges, 2).

    A component is returned as edges from its smallest node to each of its other nodes. The result
    has shape (n, 2) and is sorted by its second column.
    """
    nodes, positions = np.unique(edges, return_inverse=True)
    label = np.arange(len(nodes))
    a, b = positions.reshape(-1, 2).T
    while True:
        root_a, root_b = label[a], label[b]
        separate = root_a != root_b
        if not separate.any():
            break
        a, b, root_a, root_b = a[separate], b[separate], root_a[separate], root_b[separate]
        # Attaches each root to its smallest neighbor, if that is smaller than the root itself. Then
        # points every node directly at its root.
        np.minimum.at(label, np.maximum(root_a, root_b), np.minimum(root_a, root_b))
        while True:
            parent = label[label]
            if np.array_equal(parent, label):
                break
            label = parent
    others = np.flatnonzero(label != np.arange(len(nodes)))
    return np.stack([nodes[label[others]], nodes[others]], 1)


@lru_cache
def _factors(buckets: int, hashes: int) -> tuple[UInts, UInts]:
    generator = np.random.Generator(np.random.PCG64(SEED))
    count = buckets * hashes
    odd = generator.integers(0, 2**63, count + hashes, np.uint64) * np.uint64(2) + np.uint64(1)
    return odd[:count, None], odd[count:]


def _keys(folder: Path, unit: int) -> Path:
    return folder / "signatures" / f"{unit:06}.keys"


def _numbers(folder: Path, unit: int) -> Path:
    return folder / "signatures" / f"{unit:06}.numbers"
