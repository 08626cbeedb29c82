"""Reads the duplicates of a corpus: sizes of clusters, and pairs of near duplicates."""

from __future__ import annotations

import json
import random
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np

from conf.errors import InputError
from data_pipeline.dedup.answers import Pair, make_pairs
from data_pipeline.dedup.lookup import Copy, Duplicates
from data_pipeline.dedup.originals import LARGEST
from data_pipeline.inspection import charts
from data_pipeline.inspection.differences import Differences, compare
from data_pipeline.inspection.words import counted
from data_pipeline.store.manifest import Manifest

SAMPLED_UNITS = 16
"""Maximum number of units of work that pairs are sampled from."""
MEASURED_PER_SHOWN = 8
"""Number of pairs whose similarity is measured for each one that is shown."""


@dataclass(frozen=True)
class ShownPair:
    """A pair of near duplicates, with the names of both documents.

    The similarity and the differences are None if a text cannot be read any more.
    """

    dropped: str
    original: str
    similarity: float | None
    documents: int
    differences: Differences | None


@dataclass(frozen=True)
class DuplicateFacts:
    """Duplicates of a corpus.

    Attributes:
        dropped: number of documents that were dropped.
        clusters: number of kept documents that others repeat.
        sizes: number of clusters for each range of sizes, given as (least, greatest).
        largest: the largest clusters, with their sizes and the names of the kept documents.
        pairs: some pairs of near duplicates, the least similar first.
        measured: similarities of the pairs from which these were chosen, in ascending order.
        unreadable: number of these pairs with a text that cannot be read any more.
    """

    dropped: int
    clusters: int
    sizes: dict[tuple[int, int], int]
    largest: list[tuple[int, str]]
    pairs: list[ShownPair]
    measured: list[float]
    unreadable: int


def read_duplicates(manifest: Manifest, pairs: int, seed: int) -> DuplicateFacts | None:
    """Returns the duplicates of a corpus, or None if it does not record them."""
    try:
        duplicates = Duplicates(manifest)
    except InputError:  # there was no deduplication, or the folder was removed
        return None
    dropped, clusters, sizes = 0, 0, Counter[int]()
    largest: list[tuple[int, str]] = []
    for tables in duplicates.editions:
        path = tables.folder / "cleaning.json"
        found = json.loads(path.read_text()).get("duplicates") if path.is_file() else None
        if found is None:
            continue
        dropped += found["dropped"]
        clusters += found["clusters"]
        sizes.update(dict(found["sizes"]))
        for entry in found["largest"]:
            largest.append((entry["documents"], duplicates.describe_place(tables, entry)))
    candidates = make_pairs(duplicates, _sample(duplicates, pairs * MEASURED_PER_SHOWN, seed))
    measured = sorted((pair for pair in candidates if pair.similarity is not None), key=_similarity)
    shown = _spread(measured, pairs) or candidates[:pairs]
    return DuplicateFacts(
        dropped=dropped,
        clusters=clusters,
        sizes=_bins(sizes),
        largest=sorted(largest, key=lambda entry: -entry[0])[:LARGEST],
        pairs=[_shown(pair, duplicates) for pair in shown],
        measured=[_similarity(pair) for pair in measured],
        unreadable=len(candidates) - len(measured),
    )


def duplicate_facts(found: DuplicateFacts | None) -> dict[str, Any] | None:
    """Returns the section about duplicates, or None if there are none to show."""
    if found is None:
        return None
    if not found.dropped:
        text = "No document was dropped as a duplicate."
        return {"summary": text, "charts": [], "largest": [], "pairs": [], "note": ""}
    charts_shown = [charts.cluster_chart(found.sizes)]
    note = ""
    if found.measured:
        charts_shown.append(charts.similarity_chart(found.measured))
        note = (
            f"{counted(len(found.pairs), 'pair')} of {len(found.measured)} whose similarity was "
            "measured, spread over the range of similarities. They were chosen by the seed. The "
            "similarity is the Jaccard index of the word n-grams of the two texts. Differences "
            "are marked, and words that both texts share are shortened."
        )
    if found.unreadable:
        note += (
            f" The texts of {counted(found.unreadable, 'pair')} cannot be read any more, so their "
            "similarity is unknown: a file that the corpus was made from is gone, has changed or "
            "is not on this machine."
        )
    return {
        "summary": f"{counted(found.dropped, 'document')} repeat "
        f"{counted(found.clusters, 'document')} that {'was' if found.clusters == 1 else 'were'} "
        "kept. A cluster is a kept document with its copies.",
        "charts": charts_shown,
        "largest": [(f"{size:,}", name) for size, name in found.largest],
        "pairs": found.pairs,
        "note": note.strip(),
    }


def _sample(duplicates: Duplicates, count: int, seed: int) -> list[Copy]:
    """Returns near duplicates from as many units as possible, chosen by the seed."""
    choose = random.Random(f"{seed}:duplicates")
    units = duplicates.units()
    units = choose.sample(units, min(SAMPLED_UNITS, len(units)))
    near = [(*unit, numbers) for unit in units if (numbers := duplicates.near_in(*unit))]
    found: list[Copy] = []
    for place, (tables, unit, numbers) in enumerate(near):
        share = -(-(count - len(found)) // (len(near) - place))
        chosen = choose.sample(numbers, min(share, len(numbers)))
        found += duplicates.copies_in(tables, unit, sorted(chosen))
    return found[:count]


def _spread(measured: list[Pair], count: int) -> list[Pair]:
    """Returns pairs, sorted by similarity, that are spread over the range of similarities."""
    if len(measured) <= count:
        return measured
    values = [_similarity(pair) for pair in measured]
    chosen: set[int] = set()
    for target in np.linspace(values[0], values[-1], count):
        free = [place for place in range(len(values)) if place not in chosen]
        chosen.add(min(free, key=lambda place: abs(values[place] - target)))
    return [measured[place] for place in sorted(chosen)]


def _similarity(pair: Pair) -> float:
    return -1.0 if pair.similarity is None else pair.similarity


def _shown(pair: Pair, duplicates: Duplicates) -> ShownPair:
    return ShownPair(
        duplicates.describe(pair.copy),
        "a document of another corpus"
        if pair.original is None
        else duplicates.describe(pair.original),
        pair.similarity,
        pair.documents,
        None if pair.texts is None else compare(*pair.texts),
    )


def _bins(sizes: Counter[int]) -> dict[tuple[int, int], int]:
    """Returns the number of clusters per range of sizes: 2, 3 to 4, 5 to 8, and so on."""
    bins: Counter[int] = Counter()
    for size, count in sizes.items():
        bins[(size - 1).bit_length()] += count
    last = max(bins, default=0)
    return {(2 ** (n - 1) + 1, 2**n): bins[n] for n in range(1, last + 1)}
