"""Near copies by MinHash and locality-sensitive hashing (Broder, 1997), from datatrove.

Its three stages are called directly: signatures of one unit, matches of one bucket, clusters of
all. Of each cluster the first document stays, by unit and number; datatrove would keep any one.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from data_pipeline.cleaning.config import DedupOptions
from data_pipeline.cleaning.words import quiet, word_tokenizer

SHINGLES_AT_ONCE = 16_384
"""n-grams that are hashed together: a book would need gigabytes."""


def write_signatures(texts: Iterable[str], unit: int, folder: Path, options: DedupOptions) -> None:
    """Stage 1 for the documents of a unit, which are counted as they come."""
    stages = _stages(options)
    signature = stages.MinhashDedupSignature(
        str(folder / "signatures"), stages.config, language=word_tokenizer("words")
    )
    # datatrove hands str to xxhash, which takes bytes alone since its version 4.
    signature._hash_func = lambda n_gram: xxhash.xxh64_intdigest(n_gram.encode())
    whole = signature.get_signature

    def get_signature(shingles: NDArray[np.uint64]) -> list[list[int]]:
        parts = [
            whole(shingles[at : at + SHINGLES_AT_ONCE])
            for at in range(0, len(shingles), SHINGLES_AT_ONCE)
        ]
        return np.array(parts, np.uint64).min(axis=0).tolist()

    signature.get_signature = get_signature
    signature.run((_document(text) for text in texts), rank=unit)


def match_bucket(task: int, tasks: int, folder: Path, options: DedupOptions) -> None:
    """Stage 2, one of `tasks` parts, a multiple of the number of buckets."""
    stages = _stages(options)
    if (folder / "signatures").is_dir():
        stages.MinhashDedupBuckets(
            str(folder / "signatures"),
            str(folder / "matches"),
            config=stages.config,
            lines_to_buffer=1000,
        ).run(None, rank=task, world_size=tasks)


def resolve(folder: Path, options: DedupOptions) -> NDArray[np.int64]:
    """Stage 3: (unit, document) of all that go, (n, 2), sorted."""
    stages = _stages(options)
    clusters = folder / "clusters"
    if not (folder / "matches").is_dir():
        return np.empty((0, 2), np.int64)
    for file in clusters.glob("*") if clusters.is_dir() else ():
        file.unlink()
    stages.MinhashDedupCluster(
        str(folder / "matches"), str(clusters), config=stages.config, save_cluster_id=True
    ).run(None, 0, 1)
    first: dict[int, tuple[int, int]] = {}
    members = sorted(_members(clusters))
    for unit, document, cluster in members:
        first.setdefault(cluster, (unit, document))
    gone = [(u, d) for u, d, cluster in members if first[cluster] != (u, d)]
    return np.array(gone, np.int64).reshape(-1, 2)


def _members(folder: Path) -> Iterator[tuple[int, int, int]]:
    for path in folder.glob("*.clusters"):
        unit = int(path.name.split(".")[0])
        for document, cluster in struct.iter_unpack("<II", path.read_bytes()):
            yield unit, document, cluster


def _document(text: str) -> Any:
    from datatrove.data import Document

    return Document(text=text, id="")


def _stages(options: DedupOptions) -> Any:
    """datatrove's module, with our options as its `config`."""
    quiet()
    from datatrove.pipeline.dedup import minhash

    minhash.tqdm = lambda items, **_: items
    minhash.config = minhash.MinhashConfig(
        n_grams=options.n_grams,
        num_buckets=options.buckets,
        hashes_per_bucket=options.hashes_per_bucket,
    )
    return minhash
