"""New documents that are compared with those of earlier preparations.

The kept new documents must be those of one preparation with the earlier documents first. Documents
are made from their digests and keys alone, so that any graph of copies can be drawn.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_pipeline.cleaning.config import CleaningConfig, DedupOptions
from data_pipeline.dedup import index, matching, minhash
from data_pipeline.dedup.digests import DIGEST, EXACT, signatures_path, table_path
from data_pipeline.dedup.earlier import FirstDocuments
from data_pipeline.dedup.ranges import range_starts
from data_pipeline.files import write_array, write_json
from data_pipeline.store.manifest import INDEX
from data_pipeline.text.corpus import CorpusConfig, SourceConfig
from data_pipeline.text.units import Unit

BUCKETS = 3
OPTIONS = DedupOptions(minhash=True, buckets=BUCKETS)
CORPUS = CorpusConfig(
    name="made",
    sources={"s": SourceConfig(paths=["made"])},
    cleaning=CleaningConfig(dedup=OPTIONS),
)


@dataclass(frozen=True)
class Made:
    """A document: what its digest is made of, and what its key in each bucket is made of."""

    digest: int
    keys: tuple[int, ...]


Units = list[list[Made]]
NUMBERS = count(1000)
"""Numbers of documents, which are larger than the digests and keys in the tests."""


@pytest.fixture(autouse=True)
def unsynced(monkeypatch):
    """Skips syncing to disk: thousands of small files are written here."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


def hashes(values, kind):
    """Returns hashes whose order is not that of the values, (n,)."""
    odd = np.uint64(0x9E3779B97F4A7C15 + 2 * kind)
    return (np.array(values, np.uint64) + np.uint64(kind + 1)) * odd


def write_unit(work: Path, number: int, documents: list[Made]) -> Unit:
    """Writes what the scan phase writes for a unit."""
    table = np.empty(len(documents), DIGEST)
    # Few first halves, so that only the second halves tell documents apart.
    table["high"] = hashes([made.digest % 3 for made in documents], 0)
    table["low"] = hashes([made.digest for made in documents], 1)
    table["number"] = range(len(documents))
    table.sort(order=["high", "low", "number"])
    starts = range_starts(np.ascontiguousarray(table["high"])).tolist()
    write_array(table_path(work, number), table)
    result = {"documents": len(documents), "starts": {EXACT: starts}}
    write_json(work / "scan" / f"{number:06}.json", result)
    keys = [hashes([made.keys[bucket] for made in documents], 2) for bucket in range(BUCKETS)]
    numbers = np.arange(len(documents), dtype=np.uint32)
    minhash.save_signatures(signatures_path(work, number), np.stack(keys), numbers)
    return Unit(number, "s", number, ())


def deduplicate(work: Path, units: Units, earlier=(), task_bytes=2**31) -> list[tuple[int, int]]:
    """Runs all phases, keeps the index, and returns the (unit, number) of each kept document."""
    shutil.rmtree(work, ignore_errors=True)
    options = DedupOptions(minhash=True, buckets=BUCKETS, task_bytes=task_bytes)
    made = [write_unit(work, number, documents) for number, documents in enumerate(units)]
    plan = matching.load_plan(made, work, options, earlier)
    for task in range(plan.match_tasks):
        matching.match(task, plan, made, work, options)
    for task in range(plan.merge_tasks):
        matching.merge_range(task, plan, work)
    matching.settle_ranges(plan, work)
    tables = [index.keep_tables(unit, CORPUS, work, work) for unit in made]
    index.write_index(work, CORPUS, made, tables)
    kept = []
    for unit, documents in enumerate(units):
        numbers = np.arange(len(documents))
        dropped = matching.duplicates_in(unit, numbers, plan, work)
        kept += [(unit, number) for number in range(len(documents)) if number not in dropped]
    return kept


def components(documents: list[Made]) -> list[int]:
    """Returns the first document of the component of each, where near duplicates share a key."""
    first = list(range(len(documents)))
    changed = True
    while changed:
        changed = False
        for a, one in enumerate(documents):
            for b, other in enumerate(documents[:a]):
                alike = any(x == y for x, y in zip(one.keys, other.keys, strict=True))
                if alike and first[a] != first[b]:
                    first[a] = first[b] = min(first[a], first[b])
                    changed = True
    return first


def bridged(old: list[Made], new: list[Made]) -> set[int]:
    """Returns the first documents of old clusters that new documents join to an earlier one."""
    alone, together = components(old), components(old + new)
    return {n for n in range(len(old)) if alone[n] == n and together[n] != n}


def drawn_units(documents):
    unit = st.lists(
        st.builds(
            Made, st.integers(0, 30), st.tuples(*[st.integers(0, 14) for _ in range(BUCKETS)])
        ),
        max_size=documents,
    )
    return st.lists(unit, min_size=1, max_size=3)


@settings(
    deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    parts=st.lists(drawn_units(8), min_size=2, max_size=3),
    task_bytes=st.sampled_from([2**31, 3000, 900]),
)
def test_kept_documents_are_those_of_one_preparation(tmp_path, parts, task_bytes):
    units = [unit for part in parts for unit in part]
    whole = deduplicate(tmp_path / "whole", units)
    earlier: list[tuple[str, int]] = []
    kept, before = [], 0
    for number, part in enumerate(parts):
        work = tmp_path / str(number)
        found = deduplicate(work, part, earlier, task_bytes)
        kept.append([(before + unit, document) for unit, document in found])
        earlier.append((str(work / INDEX), len(part)))
        before += len(part)
        # What is kept of an addition is what one preparation up to it keeps.
        up_to = deduplicate(tmp_path / "whole", units[:before])
        assert kept[-1] == [document for document in up_to if document[0] >= before - len(part)]
    everything = {document for part in kept for document in part}
    # One preparation keeps no other documents. Those that it drops in addition are the first of
    # clusters that later documents join.
    assert set(whole) <= everything
    flat = [(unit, number) for unit, made in enumerate(units) for number in range(len(made))]
    made = [document for unit in units for document in unit]
    size = sum(map(len, parts[0]))
    if len(parts) == 2:
        extra = {flat.index(document) for document in everything - set(whole)}
        assert extra <= bridged(made[:size], made[size:])


def made(*keys: int, digest: int | None = None) -> Made:
    """A document that shares its first keys with others, and nothing else."""
    number = next(NUMBERS)
    own = [BUCKETS * number + n for n in range(BUCKETS)]
    return Made(number if digest is None else digest, (*keys, *own[len(keys) :]))


def add(tmp_path, old, new):
    """Returns the kept numbers of old and new documents, after an addition and in one go."""
    before = deduplicate(tmp_path / "old", [old])
    after = deduplicate(tmp_path / "new", [new], [(str(tmp_path / "old" / INDEX), 1)])
    whole = deduplicate(tmp_path / "whole", [old, new])
    added = [number for _, number in before], [number for _, number in after]
    in_one = [n for unit, n in whole if unit == 0], [n for unit, n in whole if unit == 1]
    return added, in_one


def test_a_dropped_old_document_still_links_a_new_one(tmp_path):
    old = [made(1), made(1, 2)]  # the second one is dropped
    added, in_one = add(tmp_path, old, [made(3, 2), made(4)])
    assert added == in_one == ([0], [1])


def test_a_chain_of_new_documents_ends_at_an_old_one(tmp_path):
    old = [made(1, 50)]
    new = [made(4, 53), made(3, 53), made(3, 52), made(1, 52)]  # only the last is like the old one
    added, in_one = add(tmp_path, old, new)
    assert added == in_one == ([0], [])


def test_a_new_document_that_joins_two_old_clusters_drops_neither(tmp_path):
    """The one difference: in one preparation, the first document of the second cluster goes."""
    added, in_one = add(tmp_path, [made(1), made(9, 2)], [made(1, 2), made(5)])
    assert added == ([0, 1], [1])
    assert in_one == ([0], [1])


def test_a_chain_of_new_documents_that_joins_two_old_clusters(tmp_path):
    new = [made(1, 3), made(7, 3), made(7, 2)]
    added, in_one = add(tmp_path, [made(1), made(9, 2)], new)
    assert added == ([0, 1], [])
    assert in_one == ([0], [])


def test_exact_copies_of_kept_and_of_dropped_old_documents(tmp_path):
    old = [made(1, digest=7), made(1, digest=8)]
    new = [made(digest=8), made(digest=7), made(digest=9), made(digest=9)]
    added, in_one = add(tmp_path, old, new)
    assert added == in_one == ([0], [2])


def test_first_documents_are_found_among_equal_first_halves():
    high = np.array([3, 3, 3, 8], np.uint64)
    table = FirstDocuments(high, np.array([1, 2, 9, 2], np.uint64))
    table.look_up(
        np.array([8, 3, 3, 3, 9, 0], np.uint64),
        np.array([70, 50, 40, 30, 20, 10], np.uint64),
        np.array([2, 9, 9, 4, 2, 1], np.uint64),
    )
    assert table.links(np.array([100, 101, 102, 103], np.uint64)).tolist() == [[102, 103], [40, 70]]
