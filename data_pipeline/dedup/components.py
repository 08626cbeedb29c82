"""Connected components of a graph whose edges do not fit into the memory of one process.

Nodes are documents, and edges join near duplicates. Of each component, all nodes but the smallest
are to be dropped. A node is dropped if and only if it is linked to a smaller one, so it is enough
to link every node that is not the smallest of its component to any smaller node of the component.

The nodes are cut into ranges, each of which is small enough for one process. Consider the chain
1-4, 4-7, 2-7 with the ranges [0, 3), [3, 6) and [6, 9):

    merge   each range on its own     [6, 9) links 7 to 2 and passes on the edge 2-4
                                      [3, 6) links 4 to 1
    settle  from the last range down  [3, 6) is passed 2-4; 4 is linked to 1, so it passes on 1-2
                                      [0, 3) is passed 1-2 and links 2 to 1

`merge` takes the edges whose larger node is in the range. It runs in parallel for all ranges, and
does nearly all of the work. `settle` only processes what ranges pass on to lower ones. Since all of
that is complete when a range's turn comes, one pass is exact. Both hold the nodes of one range and
a bounded number of edges in memory. The result does not depend on how the nodes or edges are cut.

The edges are files of *links*: arrays of shape (2, n) and type uint64, whose columns are a node and
a smaller one, sorted by the first.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_pipeline.files import write_array

Links = NDArray[np.uint64]

BYTES_PER_LINK = 200
"""Peak memory per link of `star_forest`, measured by `benchmarks/preparation_growth.py`."""
MAX_LINKS_AT_ONCE = 1 << 20
"""Largest number of links to join at a time. The time per link grows with their number."""


@dataclass(frozen=True)
class NodeRange:
    """A range of nodes [low, high), the `number`-th of all, and the folder of the results."""

    number: int
    low: int
    high: int
    folder: Path

    @property
    def merged(self) -> Path:
        """The links that `merge` found for the nodes of this range."""
        return self.folder / f"merged-{self.number:06}.npy"

    @property
    def settled(self) -> Path:
        """The links that `settle` added to them, for other nodes of this range."""
        return self.folder / f"settled-{self.number:06}.npy"

    def passed_on(self, stage: str, part: int) -> Path:
        """Returns the path of links among lower nodes, found by `merge` or `settle`."""
        return self.folder / f"{stage}-lower-{self.number:06}-{part:04}.npy"


def merge(nodes: NodeRange, sources: Iterable[Path], links_at_once: int) -> None:
    """Links the nodes of a range, given files of links that contain all edges of the graph."""
    forest = _empty()
    tables = (_open(path) for path in sources)
    for part, links in enumerate(_chunks(tables, nodes, links_at_once)):
        forest, lower = _split(star_forest(np.concatenate([forest, links], 1)), nodes.low)
        if lower.size:
            write_array(nodes.passed_on("merge", part), lower)
    write_array(nodes.merged, forest)


def settle(ranges: list[NodeRange], links_at_once: int) -> None:
    """Links the nodes that `merge` could not, because their edges were found by higher ranges."""
    found = (path for nodes in ranges[:1] for path in nodes.folder.glob("merge-lower-*"))
    passed_on = [_open(path) for path in sorted(found)]
    for nodes in reversed(ranges):
        forest, part = _empty(), 0
        merged = _open(nodes.merged)
        for links in _chunks(passed_on, nodes, links_at_once):
            known = _look_up(merged, links, nodes.low)
            joined = star_forest(np.concatenate([forest, links, known], 1))
            forest, lower = _split(joined, nodes.low)
            if lower.size:
                path = nodes.passed_on("settle", part)
                write_array(path, lower)
                passed_on.append(_open(path))
                part += 1
        # A node that `merge` has linked already keeps that link. `known` passes on the rest.
        write_array(nodes.settled, forest[:, ~_contains(merged[0], forest[0])])


def read_links(path: Path, low: int, high: int) -> Links:
    """Returns the links of the nodes in [low, high), reading only that part of the file."""
    return _slice(_open(path), low, high)


def follow(path: Path, nodes: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Returns what a file links each of some sorted nodes to, or the node itself if to none."""
    table = _open(path)
    linked = _contains(table[0], nodes)
    targets = nodes.copy()
    targets[linked] = table[1][np.searchsorted(table[0], nodes[linked])]
    return targets


def links_to_first(nodes: NDArray[np.uint64], same: NDArray[np.bool_]) -> Links:
    """Returns links of the nodes of each group to its first one, which must be its smallest.

    `same[i]` tells whether the nodes i and i + 1 are in the same group. The links are not sorted.
    """
    later = np.flatnonzero(same) + 1
    firsts = np.flatnonzero(~np.concatenate([[False], same]))
    first = firsts[np.searchsorted(firsts, later, "right") - 1]
    return np.stack([nodes[later], nodes[first]])


def sort_links(links: Links) -> Links:
    """Returns links in the order in which they are stored."""
    return links[:, np.argsort(links[0], kind="stable")]


def star_forest(links: Links) -> Links:
    """Returns the connected components of a graph given by its links, of shape (2, n).

    Each component is returned as links from its other nodes to the smallest one.
    """
    nodes, positions = np.unique(links, return_inverse=True)
    label = np.arange(len(nodes))
    a, b = positions.reshape(2, -1)
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
    return np.stack([nodes[others], nodes[label[others]]])


def _open(path: Path) -> Links:
    """Opens a file of links, without reading it."""
    links: Links = np.load(path, mmap_mode="r")
    return links


def _slice(table: Links, low: int, high: int) -> Links:
    start, end = np.searchsorted(table[0], np.array([low, high], np.uint64))
    return np.array(table[:, start:end])


def _chunks(tables: Iterable[Links], nodes: NodeRange, links_at_once: int) -> Iterator[Links]:
    """Yields the links of a range from all tables, at most `links_at_once` at a time."""
    held: list[Links] = []
    size = 0
    for table in tables:
        links = _slice(table, nodes.low, nodes.high)
        for start in range(0, links.shape[1], links_at_once):
            piece = links[:, start : start + links_at_once]
            if held and size + piece.shape[1] > links_at_once:
                yield np.concatenate(held, 1)
                held, size = [], 0
            held.append(piece)
            size += piece.shape[1]
    if held:
        yield np.concatenate(held, 1)


def _split(links: Links, low: int) -> tuple[Links, Links]:
    """Returns the links of nodes from `low` on, and those of lower nodes."""
    cut = np.searchsorted(links[0], np.uint64(low))
    return links[:, cut:], links[:, :cut]


def _look_up(merged: Links, links: Links, low: int) -> Links:
    """Returns the merged links of all nodes from `low` on that occur in `links`."""
    nodes = np.unique(links)
    nodes = nodes[np.searchsorted(nodes, np.uint64(low)) :]
    nodes = nodes[_contains(merged[0], nodes)]
    return np.stack([nodes, merged[1][np.searchsorted(merged[0], nodes)]])


def _contains(table: NDArray[np.uint64], nodes: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Returns for each node whether it occurs in a sorted table."""
    if not len(table):
        return np.zeros(len(nodes), bool)
    places = np.searchsorted(table, nodes)
    return table[np.minimum(places, len(table) - 1)] == nodes


def _empty() -> Links:
    return np.empty((2, 0), np.uint64)
