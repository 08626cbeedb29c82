"""Compares digests and signatures across all units, and decides which documents to drop.

No task holds more than `DedupOptions.task_bytes` in memory: the digests and signatures are cut by
ranges of their values, and what they match is cut by ranges of units. `DedupPlan` counts both.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from conf.errors import InputError
from data_pipeline.cleaning.config import DedupOptions
from data_pipeline.dedup.components import (
    BYTES_PER_LINK,
    MAX_LINKS_AT_ONCE,
    Links,
    NodeRange,
    links_to_first,
    merge,
    read_links,
    settle,
    sort_links,
)
from data_pipeline.dedup.digests import (
    EXACT,
    NEAR,
    URL,
    rows_path,
    scan_result,
    signatures_path,
    table_path,
)
from data_pipeline.dedup.earlier import (
    DIGESTS,
    KEYS,
    URLS,
    FirstDocuments,
    Folders,
    count_units,
    look_up_digests,
    unit_paths,
)
from data_pipeline.dedup.ranges import RANGES, range_of_part
from data_pipeline.files import write_array, write_json
from data_pipeline.text.units import Unit

BYTES_PER_DIGEST = 96
BYTES_PER_KEY = 72
"""Peak memory per document of `match_exact`, and per signature of `minhash.match_keys`, measured by
`benchmarks/preparation_growth.py`."""


@dataclass(frozen=True)
class DedupPlan:
    """The tasks of the match and merge phases.

    exact_parts: number of ranges of digests of texts, 0 without exact deduplication.
    url_parts: number of ranges of digests of URLs, 0 without deduplication of URLs.
    buckets: number of buckets of MinHash, 0 without it.
    near_parts: number of ranges of the keys of a bucket.
    first_units: first unit of each range of units, with the total number of units at the end.
    links_at_once: number of links that a task of the merge phase reads at a time.
    earlier: index folders of earlier preparations, each with its number of units.
    """

    exact_parts: int
    url_parts: int
    buckets: int
    near_parts: int
    first_units: list[int]
    links_at_once: int
    earlier: list[tuple[str, int]] = field(default_factory=list)

    @property
    def earlier_units(self) -> int:
        """The number of earlier units, which come before those of the corpus itself."""
        return count_units(self.earlier)

    def node(self, unit: int) -> int:
        """Returns the number of a unit's first document among those of all units."""
        return self.earlier_units + unit << 32

    @property
    def match_tasks(self) -> int:
        """The number of tasks of the match phase."""
        return self.exact_parts + self.url_parts + self.buckets * self.near_parts

    @property
    def digest_kinds(self) -> list[str]:
        """The kinds of duplicates that are found by digests. A document of two is of the last."""
        return [EXACT] * bool(self.exact_parts) + [URL] * bool(self.url_parts)

    @property
    def merge_tasks(self) -> int:
        """The number of tasks of the merge phase."""
        return len(self.first_units) - 1

    def range_of(self, unit: int) -> int:
        """Returns the number of the range that contains a unit."""
        return int(np.searchsorted(self.first_units, unit, "right")) - 1

    def nodes(self, number: int, work: Path) -> NodeRange:
        """Returns the documents in a range of units."""
        low, high = map(self.node, self.first_units[number : number + 2])
        return NodeRange(number, low, high, work / "copies" / "near")


def make_plan(documents: list[int], options: DedupOptions, earlier: Folders = ()) -> DedupPlan:
    """Returns the plan for units with these numbers of documents, and the folders `earlier`.

    Raises InputError if `task_bytes` is too small for any number of tasks.
    """
    total, limit = sum(documents), options.task_bytes
    # Half of a task's memory holds the links of its documents, the other half those being read.
    at_once = min(limit // (2 * BYTES_PER_LINK), MAX_LINKS_AT_ONCE)
    first_units, size = [0], 0
    for unit, count in enumerate(documents):
        if size and size + count > at_once:
            first_units.append(unit)
            size = 0
        size += count
    return DedupPlan(
        _parts(total, BYTES_PER_DIGEST, limit) if options.exact else 0,
        _parts(total, BYTES_PER_DIGEST, limit) if options.url else 0,
        options.buckets if options.minhash else 0,
        _parts(total, BYTES_PER_KEY, limit) if options.minhash else 0,
        [*first_units, len(documents)],
        at_once,
        list(earlier),
    )


def load_plan(
    units: list[Unit], work: Path, options: DedupOptions, earlier: Folders = ()
) -> DedupPlan:
    """Returns the plan in a work folder, after making it if the scan phase has just ended.

    It stays as it was made, so that `task_bytes` can be changed between two calls.
    """
    path = work / "dedup.json"
    if not path.is_file():
        documents = [scan_result(work, unit.id)["documents"] for unit in units]
        write_json(path, asdict(make_plan(documents, options, earlier)))
    return DedupPlan(**json.loads(path.read_text()))


def match(task: int, plan: DedupPlan, units: list[Unit], work: Path, options: DedupOptions) -> None:
    """Runs one task of the match phase, which writes links between duplicates."""
    for kind, parts in ((EXACT, plan.exact_parts), (URL, plan.url_parts)):
        if task < parts:
            links = match_exact(task, parts, units, work, plan.earlier, kind)
            write_array(_matches(work, kind) / f"{task:06}.npy", links)
            return
        task -= parts
    from data_pipeline.dedup import minhash

    bucket, part = divmod(task, plan.near_parts)
    first, end = range_of_part(part, plan.near_parts)
    paths = [(plan.earlier_units + unit.id, signatures_path(work, unit.id)) for unit in units]
    earlier = unit_paths(plan.earlier, KEYS) if plan.earlier else None
    links = minhash.match_keys(bucket, first, end, paths, options, earlier)
    write_array(_matches(work, NEAR) / f"{bucket:03}-{part:03}.npy", links)


def match_exact(
    task: int,
    tasks: int,
    units: list[Unit],
    work: Path,
    earlier: Folders = (),
    kind: str = EXACT,
) -> Links:
    """Returns links to the first document with the same digest of its text, or of its URL.

    The first one of several new ones is linked to the first one in the folders `earlier`, if any.
    """
    first, end = range_of_part(task, tasks)
    bounds = []
    for unit in units:
        starts = scan_result(work, unit.id)["starts"][kind]
        bounds.append((starts[first], starts[end]))
    total = sum(end - start for start, end in bounds)
    high, low, documents = (np.empty(total, np.uint64) for _ in range(3))
    filled = 0
    for unit, (start, stop) in zip(units, bounds, strict=True):
        if start == stop:
            continue
        table = np.load(table_path(work, unit.id, kind), mmap_mode="r")[start:stop]
        rows = slice(filled, filled := filled + stop - start)
        high[rows], low[rows] = table["high"], table["low"]
        documents[rows] = table["number"]
        documents[rows] += np.uint64(count_units(earlier) + unit.id << 32)
    order = np.lexsort((documents, low, high))
    high, low = high[order], low[order]
    same = (high[1:] == high[:-1]) & (low[1:] == low[:-1])
    documents = documents[order]
    links = links_to_first(documents, same)
    if earlier:
        is_first = np.concatenate([[True], ~same])[:total]
        table = FirstDocuments(high[is_first], low[is_first])
        suffix = URLS if kind == URL else DIGESTS
        look_up_digests(table, unit_paths(earlier, suffix), first, end)
        links = np.concatenate([links, table.links(documents[is_first])], 1)
    return sort_links(links)


def merge_range(number: int, plan: DedupPlan, work: Path) -> None:
    """Runs one task of the merge phase, which collects the duplicates in a range of units."""
    nodes = plan.nodes(number, work)
    for kind in plan.digest_kinds:
        parts = [read_links(path, nodes.low, nodes.high) for path in _files(_matches(work, kind))]
        found = np.concatenate([np.empty((2, 0), np.uint64), *parts], 1)
        write_array(_collected_path(work, kind, number), found[:, np.argsort(found[0])])
    if plan.buckets:
        merge(nodes, _files(_matches(work, NEAR)), plan.links_at_once)


def settle_ranges(plan: DedupPlan, work: Path) -> None:
    """Links the near duplicates that no task of the merge phase could link."""
    if plan.buckets:
        ranges = [plan.nodes(number, work) for number in range(plan.merge_tasks)]
        settle(ranges, plan.links_at_once)


def duplicates_in(
    unit: int, numbers: NDArray[np.int64], plan: DedupPlan, work: Path
) -> dict[int, str]:
    """Returns the numbers of the documents to drop from a unit, mapped to URL, EXACT or NEAR.

    `numbers` are those of the documents that the scan phase kept, in order. Only the parts of the
    files that are about the unit are read.
    """
    low, high = plan.node(unit), plan.node(unit + 1)
    dropped: dict[int, str] = {}
    # A document of several kinds counts as the one whose step comes first in the report.
    for kind, path in link_files(plan.range_of(unit), plan, work):
        found = read_links(path, low, high)[0] - np.uint64(low)
        dropped |= dict.fromkeys(numbers[found.astype(np.int64)].tolist(), kind)
    return dropped


def link_files(number: int, plan: DedupPlan, work: Path) -> list[tuple[str, Path]]:
    """Returns the files of links of a range's duplicates, each with its kind.

    A document that is in several of them counts as of the last kind.
    """
    nodes = plan.nodes(number, work)
    near = [(NEAR, nodes.merged), (NEAR, nodes.settled)] if plan.buckets else []
    return [*near, *((kind, _collected_path(work, kind, number)) for kind in plan.digest_kinds)]


def kept_numbers(unit: int, plan: DedupPlan, work: Path) -> NDArray[np.int64]:
    """Returns the numbers of the documents of a unit that deduplication keeps, in order."""
    numbers = np.load(rows_path(work, unit))["number"].astype(np.int64)
    dropped = list(duplicates_in(unit, numbers, plan, work))
    return numbers[~np.isin(numbers, dropped)]


def _parts(documents: int, bytes_each: int, limit: int) -> int:
    """Returns the number of ranges, a power of two, that keeps a task under the limit."""
    parts = 1
    while documents * bytes_each > parts * limit:
        parts *= 2
    if parts > RANGES:
        needed = documents * bytes_each // RANGES + 1
        raise InputError(
            f"corpus.cleaning.dedup.task_bytes={limit}: expected {needed} or more for "
            f"{documents:,} documents."
        )
    return parts


def _files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.npy"))


def _matches(work: Path, kind: str) -> Path:
    return work / "copies" / f"matches-{kind}"


def _collected_path(work: Path, kind: str, number: int) -> Path:
    return work / "copies" / kind / f"{number:06}.npy"
