"""Writes which document each duplicate repeats, as small tables that are kept with the corpus.

1. `resolve_range` follows the links of the duplicates in a range of units to the first document of
   each cluster, which is kept.
2. `record_range` counts the copies of the kept documents in a range, and writes one table per unit.

A table has a row for each document that was dropped as a duplicate, and for each kept document that
others repeat, or for all documents, so that additions to the corpus can repeat them. Both stages
run once all links have been found, with one task per range, each of which stays under
`DedupOptions.task_bytes`. `record_earlier` then counts what repeats documents of earlier
preparations. `lookup.Duplicates` reads the tables.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_pipeline.dedup.components import follow, read_links
from data_pipeline.dedup.digests import NEAR, rows_path, scan_result
from data_pipeline.dedup.matching import DedupPlan, link_files
from data_pipeline.dedup.tables import EARLIER, FILES, FOLDER, SETTINGS, Tables
from data_pipeline.files import write_array, write_json
from data_pipeline.text.corpus import CorpusConfig
from data_pipeline.text.units import Unit

LARGEST = 3
"""Number of the largest clusters that each range reports."""
ROW_GROUP = 1 << 15
"""Rows of a table that are read together. The reader skips groups by their least and largest."""

LOW_BITS = np.uint64(0xFFFFFFFF)
"""Bits of a document's number in its unit. The bits above are the number of the unit."""

Nodes = NDArray[np.uint64]


def resolve_range(number: int, plan: DedupPlan, work: Path) -> None:
    """Writes the links of a range's duplicates to the first documents of their clusters.

    Each link is a first document and its duplicate, sorted by both.
    """
    # The last kind of duplicate that a document is counts.
    paths = [path for _, path in reversed(link_files(number, plan, work))]
    links = np.concatenate([np.empty((2, 0), np.uint64), *map(np.load, paths)], 1)
    duplicates, places = np.unique(links[0], return_index=True)
    firsts = _first_documents(links[1][places], plan, work)
    order = np.argsort(firsts, kind="stable")
    write_array(_resolved_path(work, number), np.stack([firsts[order], duplicates[order]]))


def record_range(
    number: int,
    plan: DedupPlan,
    units: Sequence[Unit],
    first_rows: Sequence[int],
    work: Path,
    folder: Path,
    all_documents: bool = False,
) -> dict[str, Any]:
    """Writes the tables of the units of a range, and returns the sizes of the clusters in it.

    `units` are those of the range, and `first_rows` the numbers of their first rows in their files.
    With `all_documents`, the tables also have the documents that are not in any cluster.
    """
    copies = _copies(number, plan, units, work)
    resolved = np.load(_resolved_path(work, number))
    resolved = resolved[:, np.argsort(resolved[1])]
    (folder / FOLDER).mkdir(exist_ok=True)
    sizes: Counter[int] = Counter()
    largest: list[list[int]] = []
    for unit, first_row, count in zip(units, first_rows, copies, strict=True):
        kept = np.flatnonzero(count)
        sizes.update((count[kept] + 1).tolist())
        most = kept[np.argsort(-count[kept], kind="stable")[:LARGEST]]
        largest += [[int(count[n]) + 1, unit.id, int(n)] for n in most]
        low, high = plan.node(unit.id), plan.node(unit.id + 1)
        bounds = np.searchsorted(resolved[1], np.array([low, high], np.uint64))
        firsts, duplicates = resolved[:, slice(*bounds)]
        if all_documents:
            kept = np.setdiff1d(np.arange(len(count)), (duplicates & LOW_BITS).astype(np.int64))
        if not len(kept) + len(duplicates):
            continue
        # The columns are of the duplicates first, and then of the documents that are kept.
        repeats = firsts.copy()
        reasons = np.full(len(firsts), NEAR, object)
        for kind, path in link_files(number, plan, work):
            if kind != NEAR:
                found, same = read_links(path, low, high)
                places = np.searchsorted(duplicates, found)
                repeats[places], reasons[places] = same, kind
        nodes = kept.astype(np.uint64) + np.uint64(low)
        columns = {
            "number": np.concatenate([duplicates, nodes]) & LOW_BITS,
            "repeats": np.concatenate([repeats, nodes]),
            "reason": np.concatenate([reasons, np.full(len(kept), "", object)]),
            "copies": np.concatenate([np.zeros(len(firsts), np.int64), count[kept]]),
        }
        _write_table(folder / FOLDER / f"{unit.id:06}.parquet", unit, first_row, columns, work)
    return {
        "dropped": resolved.shape[1],
        "repeat_earlier": int((resolved[0] < np.uint64(plan.node(0))).sum()),
        "clusters": sizes.total(),
        "sizes": sorted(sizes.items()),
        "largest": sorted(largest, key=_by_size)[:LARGEST],
    }


def record_earlier(plan: DedupPlan, work: Path, folder: Path, corpus: Path) -> None:
    """Writes how many documents repeat each document of earlier preparations, if there are any.

    The copies of an earlier duplicate are counted for the document that was kept. `corpus` is the
    folder of the corpus that documents are added to. All repeated documents are held in memory.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not plan.earlier:
        return
    parts = []
    for number in range(plan.merge_tasks):
        found = read_links(_resolved_path(work, number), 0, plan.node(0))[0]
        parts.append(np.stack(np.unique(found, return_counts=True)).astype(np.uint64))
    documents, counts = np.concatenate(parts, 1)
    firsts, places = np.unique(_kept_earlier(documents, folder, corpus), return_inverse=True)
    copies = np.bincount(places, counts, len(firsts)).astype(np.int64)
    columns = {
        "unit": pa.array(firsts >> np.uint64(32), pa.int32()),
        "number": pa.array(firsts & LOW_BITS, pa.uint32()),
        "copies": pa.array(copies, pa.int64()),
    }
    pq.write_table(pa.table(columns), folder / FOLDER / EARLIER, ROW_GROUP, compression="zstd")


def record_files(
    corpus: CorpusConfig,
    units: Sequence[Unit],
    rows: Sequence[int],
    folder: Path,
    earlier: Sequence[tuple[str, int]] = (),
) -> None:
    """Writes the table of all files, sorted by name, and the settings that reading them needs.

    `rows` are the numbers of the units' first rows in their files. `earlier` are the earlier
    preparations, as the folders of editions, each with the number of its units.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    found = sorted(
        (utf8(file.name), unit.source, unit.id, row)
        for unit, row in zip(units, rows, strict=True)
        for file in unit.files
    )
    columns = list(zip(*found, strict=True)) or [(), (), (), ()]
    types = {"name": pa.string(), "source": pa.string(), "unit": pa.int32(), "row": pa.int64()}
    arrays = [pa.array(column, kind) for column, kind in zip(columns, types.values(), strict=True)]
    (folder / FOLDER).mkdir(exist_ok=True)
    table = pa.Table.from_arrays(arrays, list(types))
    pq.write_table(table, folder / FOLDER / FILES, ROW_GROUP, compression="zstd")
    cleaning = corpus.cleaning
    settings = {
        "earlier": list(earlier),
        "n_grams": cleaning.dedup.n_grams,
        "c4": cleaning.c4,
        "pii": vars(cleaning.pii),
        "word_tokenizer": cleaning.word_tokenizer,
        "sources": {
            name: {
                "format": source.format,
                "text_field": source.text_field,
                "subset": source.subset,
                "split": source.split,
                "steps": corpus.steps_of(name),
            }
            for name, source in corpus.sources.items()
        },
    }
    write_json(folder / FOLDER / SETTINGS, settings)


def merged_sizes(ranges: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Returns the sums of what `record_range` returned for all ranges."""
    sizes: Counter[int] = Counter()
    for found in ranges:
        sizes.update(dict(found["sizes"]))
    largest = sorted((entry for found in ranges for entry in found["largest"]), key=_by_size)
    return {
        "dropped": sum(found["dropped"] for found in ranges),
        "repeat_earlier": sum(found["repeat_earlier"] for found in ranges),
        "clusters": sum(found["clusters"] for found in ranges),
        "sizes": sorted(sizes.items()),
        "largest": largest[:LARGEST],
    }


def utf8(name: str) -> str:
    """Returns a file name as valid UTF-8, which it need not be."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _by_size(entry: list[int]) -> tuple[int, ...]:
    size, *document = entry
    return -size, *document


def _first_documents(documents: Nodes, plan: DedupPlan, work: Path) -> Nodes:
    """Returns the document at the end of the links that begin at each document."""
    distinct, places = np.unique(documents, return_inverse=True)
    reached = distinct.copy()
    pending = np.arange(len(distinct))
    lows = np.array([plan.node(unit) for unit in plan.first_units], np.uint64)
    while len(pending):
        # In ascending order, the lookups of each range are together and read its files in order.
        pending = pending[np.argsort(reached[pending])]
        before = reached[pending]
        after = before.copy()
        bounds = np.searchsorted(before, lows)
        for number in np.flatnonzero(np.diff(bounds)).tolist():
            part = slice(*bounds[number : number + 2])
            for _, path in link_files(number, plan, work):
                targets = follow(path, before[part])
                after[part] = np.where(targets != before[part], targets, after[part])
        reached[pending] = after
        pending = pending[after != before]
    return reached[places]


def _kept_earlier(documents: Nodes, folder: Path, corpus: Path) -> Nodes:
    """Returns the documents that earlier documents repeat, which are themselves if kept."""
    own = Tables(folder, corpus)
    found = documents.copy()
    for unit in np.unique(documents >> np.uint64(32)).tolist():
        place, local = own.place(unit)
        if not (place / FOLDER / SETTINGS).is_file():
            continue
        tables = Tables(place, corpus)
        table = tables.read(local, columns=["number", "reason", "repeats_unit", "repeats"])
        if table is None:
            continue
        mine = np.flatnonzero(found >> np.uint64(32) == unit)
        rows = np.searchsorted(table["number"].to_numpy(), found[mine] & LOW_BITS)
        for at, row in zip(mine.tolist(), table.take(rows).to_pylist(), strict=True):
            if row["reason"]:
                named = own.number(*tables.place(row["repeats_unit"]))
                if named is not None:
                    found[at] = (named << 32) + row["repeats"]
    return found if np.array_equal(found, documents) else _kept_earlier(found, folder, corpus)


def _copies(
    number: int, plan: DedupPlan, units: Sequence[Unit], work: Path
) -> list[NDArray[np.int64]]:
    """Returns how many duplicates repeat each document of the units of a range."""
    sizes = [len(np.load(rows_path(work, unit.id), mmap_mode="r")) for unit in units]
    ends = np.cumsum(sizes)
    copies = np.zeros(sum(sizes), np.int64)
    nodes = plan.nodes(number, work)
    for other in range(number, plan.merge_tasks):  # no duplicate is in a lower range
        found = read_links(_resolved_path(work, other), nodes.low, nodes.high)[0]
        firsts, counts = np.unique(found, return_counts=True)
        first_unit = plan.earlier_units + plan.first_units[number]
        unit = (firsts >> np.uint64(32)).astype(np.int64) - first_unit
        before = np.concatenate([[0], ends])[unit]
        copies[before + (firsts & LOW_BITS).astype(np.int64)] += counts
    return np.split(copies, ends[:-1])


def _write_table(
    path: Path, unit: Unit, first_row: int, columns: dict[str, NDArray[Any]], work: Path
) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    order = np.argsort(columns["number"])
    columns = {name: column[order] for name, column in columns.items()}
    rows = np.load(rows_path(work, unit.id), mmap_mode="r")[columns["number"].astype(np.int64)]
    # Each file of a unit of several files is one row.
    is_group = len(unit.files) > 1
    files = [unit.files[n if is_group else 0] for n in rows["number"].tolist()]
    names = [utf8(file.name) for file in files]
    roots = [utf8(file.path)[: -len(name)] for file, name in zip(files, names, strict=True)]
    table = pa.table(
        {
            "number": pa.array(columns["number"], pa.uint32()),
            "root": pa.array(roots, pa.string()).dictionary_encode(),
            "name": pa.array(names, pa.string()),
            "bytes": pa.array([file.bytes for file in files], pa.int64()),
            "row": pa.array(rows["line"] + np.int64(first_row), pa.int64()),
            "position": pa.array(rows["position"], pa.uint64()),
            "reason": pa.array(columns["reason"], pa.string()).dictionary_encode(),
            "repeats_unit": pa.array(columns["repeats"] >> np.uint64(32), pa.int32()),
            "repeats": pa.array(columns["repeats"] & LOW_BITS, pa.uint32()),
            "copies": pa.array(columns["copies"], pa.int64()),
        }
    )
    table = table.replace_schema_metadata({"source": unit.source})
    pq.write_table(table, path, ROW_GROUP, compression="zstd")


def first_rows(units: Sequence[Unit], work: Path) -> list[int]:
    """Returns the number of each unit's first row in its file, which several units may share."""
    found, rows = [], 0
    for unit in units:
        rows = rows if unit.start else 0
        found.append(rows)
        rows += scan_result(work, unit.id)["lines"]
    return found


def _resolved_path(work: Path, number: int) -> Path:
    return work / "copies" / "resolved" / f"{number:06}.npy"
