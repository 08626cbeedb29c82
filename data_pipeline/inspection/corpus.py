"""Reads the totals of a corpus from its manifest, and document lengths from some shard indices."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_pipeline.store.manifest import Manifest
from data_pipeline.store.shard_scan import BadIndex, read_index
from data_pipeline.tokenizing.documents import document_names

Ints = NDArray[np.int64]
MAX_SHARDS = 1024
"""Maximum number of shard indices that are read, divided evenly among the sources.

Each source gets at least MIN_SHARDS_PER_SOURCE, even if that exceeds the maximum."""
MIN_SHARDS_PER_SOURCE = 4
MAX_LENGTHS = 200_000
"""Approximate maximum number of document lengths that are taken from one index."""
QUANTILES = (0.1, 0.5, 0.9, 0.99)
BINS_PER_DOUBLING = 2
"""Number of histogram bins per doubling of the document length."""


@dataclass(frozen=True)
class Totals:
    """Sums over the shards of a source in one split. `bytes` is the size of the text in UTF-8."""

    shards: int = 0
    documents: int = 0
    tokens: int = 0
    bytes: int = 0

    @property
    def bytes_per_token(self) -> float:
        """Bytes of text per token, or 0 if there are no tokens."""
        return self.bytes / self.tokens if self.tokens else 0.0


@dataclass(frozen=True)
class Lengths:
    """Document lengths of a source in tokens, in ascending order.

    They were read from `shards` of the source's `of_shards` shards.
    """

    tokens: Ints
    shards: int
    of_shards: int

    def quantiles(self) -> list[int]:
        """Returns the lengths at QUANTILES, or an empty list if there are no documents."""
        if not len(self.tokens):
            return []
        return [int(q) for q in np.quantile(self.tokens, QUANTILES, method="nearest")]

    def histogram(self) -> tuple[list[float], list[float]]:
        """Returns the bin edges, and the percentage of documents in each bin."""
        if not len(self.tokens):
            return [], []
        low = np.floor(np.log2(max(1, self.tokens[0])))
        high = max(low + 1, np.ceil(np.log2(self.tokens[-1] + 1)))
        edges = 2 ** np.linspace(low, high, int(high - low) * BINS_PER_DOUBLING + 1)
        counts, _ = np.histogram(self.tokens, edges)
        return edges.tolist(), (100 * counts / len(self.tokens)).tolist()


def totals(manifest: Manifest, split: str) -> dict[str, Totals]:
    """Returns the totals of each source in a split."""
    return {
        source: Totals(
            len(shards), *(sum(e[key] for e in shards) for key in ("documents", "tokens", "bytes"))
        )
        for source, shards in manifest.splits.get(split, {}).items()
    }


def spread(entries: list[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    """Returns up to `count` shards, chosen by a hash of their names, in their original order."""
    if len(entries) <= count:
        return entries

    def key(entry: dict[str, Any]) -> bytes:
        return hashlib.sha256(f"inspect:{entry['file']}".encode()).digest()

    kept = {entry["file"] for entry in sorted(entries, key=key)[:count]}
    return [entry for entry in entries if entry["file"] in kept]


def sample_lengths(manifest: Manifest, source: str) -> Lengths:
    """Returns lengths of training documents of a source, or of their pieces if they are packed.

    Indices that cannot be read are skipped here, because `verify` reports them.
    """
    entries = manifest.shards("train", source)
    sources = len(manifest.splits.get("train", {}))
    found = []
    read = 0
    for entry in spread(entries, max(MIN_SHARDS_PER_SOURCE, MAX_SHARDS // max(1, sources))):
        try:
            lengths = read_index(manifest.folder / f"{entry['file']}.idx").document_lengths()
        except (BadIndex, OSError):
            continue
        if manifest.packed:  # padding is a document without a file name
            names = document_names(manifest, entry["file"])
            lengths = lengths[[name != "" for name, _ in names]] if names else lengths
        read += 1
        found.append(lengths[:: 1 + len(lengths) // MAX_LENGTHS])
    tokens = np.sort(np.concatenate(found)) if found else np.empty(0, np.int64)
    return Lengths(tokens[tokens > 0], read, len(entries))
