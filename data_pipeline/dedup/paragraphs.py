"""Removes paragraphs that many documents contain, except from the first of these documents.

Only documents that deduplication keeps are compared, so this takes several stages after it:

1. `paragraph_tables` stores a digest of every paragraph, while the scan phase reads the text.
2. `filter_unit` leaves out the paragraphs of duplicates.
3. `count_range` compares the paragraphs in a range of digests across all units.
4. `collect` gathers what is to be removed from a range of units.
5. `without_repeats` rewrites the documents of a unit while they are encoded.

No task holds more than `DedupOptions.task_bytes` in memory.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from conf.errors import InputError
from data_pipeline.cleaning.chain import Outcome, utf8_size
from data_pipeline.cleaning.config import DedupOptions
from data_pipeline.dedup.components import read_links, sort_links
from data_pipeline.dedup.digests import REPEATED, scan_result
from data_pipeline.dedup.matching import DedupPlan, kept_numbers
from data_pipeline.dedup.paragraph_tables import (
    BREAKS,
    RANGES,
    long_paragraphs,
    read_table,
    scanned_path,
    without,
    write_table,
)
from data_pipeline.dedup.ranges import range_of_part
from data_pipeline.files import write_array, write_json
from data_pipeline.text.readers import Row
from data_pipeline.text.selection import Selection

BYTES_PER_PARAGRAPH = 120
"""Peak memory per paragraph of `count_range`, measured: 101. `collect` takes 14."""
MOST_FREQUENT = 20
"""Number of paragraphs that the report shows."""


@dataclass(frozen=True)
class ParagraphPlan:
    """The tasks that compare paragraphs.

    parts: number of ranges of digests.
    first_units: first unit of each range of units, with the total number of units at the end.
    """

    parts: int
    first_units: list[int]

    @property
    def collect_tasks(self) -> int:
        """The number of tasks that gather what is to be removed."""
        return len(self.first_units) - 1


def load_plan(units: Sequence[int], work: Path, options: DedupOptions) -> ParagraphPlan:
    """Returns the plan in a work folder, after making it if there is none yet.

    Raises InputError if `task_bytes` is too small for any number of tasks.
    """
    path = work / "paragraphs.json"
    if not path.is_file():
        counts = [scan_result(work, unit)["paragraphs"] for unit in units]
        write_json(path, asdict(make_plan(counts, options.task_bytes)))
    return ParagraphPlan(**json.loads(path.read_text()))


def make_plan(counts: list[int], task_bytes: int) -> ParagraphPlan:
    """Returns the plan for units with these numbers of paragraphs."""
    parts, at_once = 1, max(1, task_bytes // BYTES_PER_PARAGRAPH)
    while sum(counts) > parts * at_once:
        parts *= 2
    if parts > RANGES:
        raise InputError(
            f"corpus.cleaning.dedup.task_bytes={task_bytes}: expected "
            f"{sum(counts) * BYTES_PER_PARAGRAPH // RANGES + 1} or more for {sum(counts):,} "
            "paragraphs."
        )
    first_units, size = [0], 0
    for unit, count in enumerate(counts):
        if size and size + count > at_once:
            first_units.append(unit)
            size = 0
        size += count
    return ParagraphPlan(parts, [*first_units, len(counts)])


def filter_unit(unit: int, plan: DedupPlan, work: Path) -> None:
    """Writes the table of a unit without the documents that deduplication drops."""
    table = read_table(scanned_path(work, unit), 0, RANGES)
    kept = np.isin(table["number"], kept_numbers(unit, plan, work))
    write_table(_kept_path(work, unit), table[kept])


def count_range(
    part: int, plan: ParagraphPlan, units: Sequence[int], work: Path, options: DedupOptions
) -> list[dict[str, int]]:
    """Finds the paragraphs of a range of digests that must be removed, and writes where they are.

    Returns the most frequent ones: in how many documents each is, and where it stays.
    """
    first, end = range_of_part(part, plan.parts, RANGES)
    tables = [read_table(_kept_path(work, unit), first, end) for unit in units]
    total = sum(map(len, tables))
    high, low, documents, indices = (np.empty(total, np.uint64) for _ in range(4))
    filled = 0
    for number, unit in enumerate(units):
        table, tables[number] = tables[number], tables[number][:0]
        rows = slice(filled, filled := filled + len(table))
        high[rows], low[rows], indices[rows] = table["high"], table["low"], table["index"]
        documents[rows] = table["number"]
        documents[rows] += np.uint64(unit << 32)
    # Paragraphs are in the order of the corpus, which the stable sort retains for each digest.
    order = np.lexsort((low, high))
    high, low = high[order], low[order]
    starts_group = np.ones(total, bool)
    starts_group[1:] = (high[1:] != high[:-1]) | (low[1:] != low[:-1])
    del high, low
    documents, indices = documents[order], indices[order]
    starts_document = starts_group.copy()
    starts_document[1:] |= documents[1:] != documents[:-1]
    group = np.cumsum(starts_group) - 1
    counts = np.bincount(group, starts_document).astype(np.int64)
    firsts = np.flatnonzero(starts_group)
    repeated = counts[group] >= options.paragraph_min_count
    repeated &= documents != documents[firsts[group]]
    write_array(_count_path(work, part), sort_links(np.stack([documents, indices])[:, repeated]))
    candidates = np.flatnonzero(counts >= options.paragraph_min_count)
    top = candidates[np.argsort(-counts[candidates], kind="stable")[:MOST_FREQUENT]]
    return [
        {
            "documents": int(counts[number]),
            "document": int(documents[firsts[number]]),
            "index": int(indices[firsts[number]]),
        }
        for number in top
    ]


def collect(number: int, plan: ParagraphPlan, tops: list[list[dict[str, int]]], work: Path) -> None:
    """Gathers what is to be removed from a range of units. `tops` are results of `count_range`."""
    low, high = (unit << 32 for unit in plan.first_units[number : number + 2])
    parts = [read_links(_count_path(work, part), low, high) for part in range(plan.parts)]
    write_array(_collected_path(work, number), sort_links(np.concatenate(parts, 1)))
    if number == 0:
        ranked = sorted((one for top in tops for one in top), key=lambda one: -one["documents"])
        write_json(_top_path(work), ranked[:MOST_FREQUENT])


def without_repeats(
    rows: Iterator[tuple[int, Row]], selection: Selection, work: Path, options: DedupOptions
) -> Iterator[tuple[int, Row]]:
    """Yields the numbered rows of a unit without the paragraphs that are to be removed.

    Drops a document that is left without any paragraph of `paragraph_min_chars`. Updates the counts
    and the report of the selection.
    """
    unit, report = selection.unit, selection.report
    removed = _removed_in(unit.id, load_plan([], work, options), work)
    shown: dict[int, list[tuple[int, dict[str, int]]]] = {}
    for rank, one in enumerate(json.loads(_top_path(work).read_text())):
        if one["document"] >> 32 == unit.id:
            shown.setdefault(one["document"] & 0xFFFFFFFF, []).append((rank, one))
    for number, row in rows:
        for rank, one in shown.get(number, ()):
            pieces = BREAKS[options.paragraph_break].split(row.text)
            paragraph = pieces[2 * one["index"]].strip()
            place = (row.file, row.position)
            report.show_paragraph(rank, one["documents"], unit.source, place, paragraph)
        size = utf8_size(row.text)
        report.reach(unit.source, REPEATED, size)
        if number in removed:
            text = without(row.text, removed[number], options)
            lost = size - utf8_size(text)
            report.remove_paragraphs(unit.source, len(removed[number]), lost)
            if not any(long_paragraphs(text, options)):
                selection.counts[REPEATED] += 1
                outcome = Outcome(row.text, REPEATED, "no_paragraph_left", sizes=(size,))
                report.drop(unit.source, row.file, row.position, outcome)
                continue
            report.change(unit.source, REPEATED)
            row = row._replace(text=text)
        yield number, row


def _removed_in(unit: int, plan: ParagraphPlan, work: Path) -> dict[int, set[int]]:
    """Returns the numbers of the paragraphs to remove from each document of a unit."""
    number = int(np.searchsorted(plan.first_units, unit, "right")) - 1
    found = read_links(_collected_path(work, number), unit << 32, (unit + 1) << 32)
    removed: dict[int, set[int]] = {}
    for document, index in found.T.tolist():
        removed.setdefault(document & 0xFFFFFFFF, set()).add(index)
    return removed


def _kept_path(work: Path, unit: int) -> Path:
    return work / "paragraphs" / f"{unit:06}.kept"


def _count_path(work: Path, part: int) -> Path:
    return work / "count" / f"{part:06}.npy"


def _collected_path(work: Path, number: int) -> Path:
    return work / "collect" / f"{number:06}.npy"


def _top_path(work: Path) -> Path:
    return work / "collect" / "top.json"
