"""Connected components in ranges of nodes, against one process that holds the whole graph."""

from __future__ import annotations

import os
import shutil
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_pipeline.cleaning.config import DedupOptions
from data_pipeline.dedup import components, matching
from data_pipeline.dedup.components import NodeRange, merge, settle, star_forest
from data_pipeline.files import write_array

GRAPHS = {
    "chain": [(n, n + 1) for n in range(10_000)],
    "reversed in halves": [(n, 9_999 - n) for n in range(5_000)] + [(n, n + 2) for n in range(99)],
    "cliques": [(c * 40 + a, c * 40 + b) for c in range(100) for a in range(40) for b in range(a)],
    "stars": [(c * 100 + 99, c * 100 + n) for c in range(100) for n in range(99)],
    "many components": [(2 * n, 2 * n + 1) for n in range(4_000)],
}


@pytest.fixture(autouse=True)
def unsynced(monkeypatch):
    """Skips syncing to disk: thousands of small files are written here."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


def links_of(edges):
    table = np.array(edges, np.uint64).reshape(-1, 2)
    links = np.stack([table.max(1), table.min(1)])
    links = links[:, links[0] != links[1]]
    return links[:, np.argsort(links[0], kind="stable")]


def dropped(links, ranges, files, links_at_once, folder):
    """Returns the nodes that `merge` and `settle` link, with the links in several files."""
    shutil.rmtree(folder, ignore_errors=True)
    sources = [folder / f"{number}.npy" for number in range(files)]
    for number, path in enumerate(sources):
        write_array(path, links[:, number::files])
    nodes = int(links.max()) + 1 if links.size else 1
    cuts = np.linspace(0, nodes, ranges + 1).astype(int).tolist()
    parts = [
        NodeRange(number, low, high, folder / "out")
        for number, (low, high) in enumerate(pairwise(cuts))
    ]
    for part in parts:
        merge(part, sources, links_at_once)
    settle(parts, links_at_once)
    found = [np.load(path) for part in parts for path in (part.merged, part.settled)]
    assert all((table[0] > table[1]).all() for table in found)
    return sorted(node for table in found for node in table[0].tolist())


@pytest.mark.parametrize("ranges", [1, 14, 56, 224])
@pytest.mark.parametrize("name", GRAPHS)
def test_ranges_drop_what_one_process_drops(name, ranges, tmp_path):
    shuffled = np.random.default_rng(1).permutation(20_000)
    for relabel in (shuffled, np.arange(20_000))[: 1 if ranges > 14 else 2]:
        links = links_of([(relabel[a], relabel[b]) for a, b in GRAPHS[name]])
        expected = star_forest(links)[0].tolist()
        assert dropped(links, ranges, 5, 20_000, tmp_path / "work") == expected
    assert len(expected) > 3_000


@settings(
    deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    edges=st.lists(st.tuples(st.integers(0, 80), st.integers(0, 80)), max_size=150),
    ranges=st.integers(1, 12),
    files=st.integers(1, 5),
    links_at_once=st.integers(1, 40),
)
def test_any_graph_in_any_cut(tmp_path, edges, ranges, files, links_at_once):
    links = links_of(edges)
    expected = star_forest(links)[0].tolist()
    assert dropped(links, ranges, files, links_at_once, tmp_path / "work") == expected


def test_star_forest_finds_the_components_of_scipy():
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    draw = np.random.default_rng(2)
    links = links_of(draw.integers(0, 3_000, (2_500, 2)))
    size = int(links.max()) + 1
    graph = coo_matrix((np.ones(links.shape[1]), links.astype(int)), (size, size))
    _, labels = connected_components(graph, directed=False)
    first = np.full(labels.max() + 1, size)
    np.minimum.at(first, labels, np.arange(size))
    forest = star_forest(links)
    assert forest[0].tolist() == np.flatnonzero(first[labels] != np.arange(size)).tolist()
    assert forest[1].tolist() == first[labels[forest[0].astype(int)]].tolist()


def test_an_interrupted_settle_can_be_repeated(tmp_path, monkeypatch):
    links = links_of([(n, (n * 7919) % 3_000) for n in range(3_000)])
    expected = dropped(links, 9, 3, 50, tmp_path / "whole")
    whole = {path.name: path.read_bytes() for path in (tmp_path / "whole/out").iterdir()}
    written: list[str] = []

    def fails(path, array):
        if path.name.startswith("settle") and len(written) == 4:
            raise KeyboardInterrupt
        written.extend([path.name] * path.name.startswith("settle"))
        write_array(path, array)

    monkeypatch.setattr(components, "write_array", fails)
    with pytest.raises(KeyboardInterrupt):
        dropped(links, 9, 3, 50, tmp_path / "cut")
    monkeypatch.undo()
    cuts = np.linspace(0, int(links.max()) + 1, 10).astype(int).tolist()
    parts = [NodeRange(n, cuts[n], cuts[n + 1], tmp_path / "cut/out") for n in range(9)]
    settle(parts, 50)
    assert {path.name: path.read_bytes() for path in (tmp_path / "cut/out").iterdir()} == whole
    assert len(expected) > 1_000


def test_the_plan_keeps_every_task_below_its_memory():
    options = DedupOptions(minhash=True, task_bytes=50_000_000)
    documents = [83_000] * 100 + [0, 5, 2_000_000]
    plan = matching.make_plan(documents, options)
    total = sum(documents)
    assert total * matching.BYTES_PER_DIGEST <= plan.exact_parts * 50_000_000
    assert total * matching.BYTES_PER_KEY <= plan.near_parts * 50_000_000
    assert (plan.first_units[0], plan.first_units[-1]) == (0, len(documents))
    for first, end in pairwise(plan.first_units):
        held = sum(documents[first:end])
        assert held <= plan.links_at_once or end == first + 1
    assert [plan.range_of(unit) for unit in (0, 102)] == [0, plan.merge_tasks - 1]
    with pytest.raises(matching.InputError, match=r"task_bytes=1000: expected .* or more for"):
        matching.make_plan(documents, DedupOptions(task_bytes=1000))
