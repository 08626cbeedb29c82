"""Measures the match and merge phases with made documents, by the code of these phases.

What is measured at 131,072 documents holds for more of them in proportion, except that sorting
slows down: a task of 16 times as many documents takes about 1.5 times as long for each
(`benchmarks/preparation_growth.py`).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.cleaning.config import DedupOptions
from data_pipeline.dedup import matching, minhash
from data_pipeline.dedup.components import read_links
from data_pipeline.dedup.digests import DIGEST, EXACT, signatures_path, table_path
from data_pipeline.dedup.ranges import range_starts
from data_pipeline.files import write_array, write_json
from data_pipeline.splitmix import mix
from data_pipeline.text.units import Unit

DOCUMENTS = 1 << 17
FEW, MANY = 4, 64
"""Numbers of units, whose difference tells what a unit takes in every task."""
SHARED = 0.7
"""Share of the keys that a made copy has in common with its original."""


@dataclass(frozen=True)
class MatchRates:
    """CPU seconds per document, and per unit or file that a task opens.

    exact, near: of comparing digests, and the keys of one bucket.
    exact_unit, near_unit: of opening a unit's digests, and its keys.
    merge, merge_file: of collecting the duplicates, and of opening a file of links.
    """

    exact: float = 0.0
    near: float = 0.0
    exact_unit: float = 0.0
    near_unit: float = 0.0
    merge: float = 0.0
    merge_file: float = 0.0

    def match_seconds(self, plan: matching.DedupPlan, documents: float, units: int) -> float:
        """Returns the CPU seconds of the match phase."""
        each = self.exact * len(plan.digest_kinds) + self.near * plan.buckets
        opened = self.exact_unit * (plan.exact_parts + plan.url_parts)
        opened += self.near_unit * plan.buckets * plan.near_parts
        return documents * each + units * opened

    def merge_seconds(self, plan: matching.DedupPlan, documents: float) -> float:
        """Returns the CPU seconds of the merge phase."""
        return documents * self.merge + plan.merge_tasks * plan.match_tasks * self.merge_file


def measure_rates(options: DedupOptions, copies: float, folder: Path) -> MatchRates:
    """Measures both phases for documents of which the share `copies` repeats earlier ones."""
    few, many = (_measure(options, copies, count, folder / str(count)) for count in (FEW, MANY))
    first, steps = few, MANY - FEW
    units = {key: max(0.0, many[key] - few[key]) / steps for key in few}
    rest = {key: max(0.0, first[key] - FEW * units[key]) / DOCUMENTS for key in first}
    return MatchRates(
        rest["exact"],
        rest["near"],
        units["exact"],
        units["near"],
        first["merge"] / DOCUMENTS,
        first["file"],
    )


def _measure(options: DedupOptions, copies: float, units: int, work: Path) -> dict[str, float]:
    each = DOCUMENTS // units
    draw = np.random.default_rng(5)
    buckets = np.arange(options.buckets, dtype=np.uint64)[:, None] << np.uint64(40)
    for unit in range(units):
        number = np.arange(unit * each, (unit + 1) * each, dtype=np.uint64)
        earlier = (draw.random(each) * number).astype(np.uint64)
        original = np.where(draw.random(each) < copies, earlier, number)
        if options.minhash:
            shared = draw.random((options.buckets, each)) < SHARED
            keys = mix(np.where(shared, original, number) + buckets)
            path = signatures_path(work, unit)
            minhash.save_signatures(path, keys, np.arange(each, dtype=np.uint32))
        table = np.zeros(each, DIGEST)
        table["high"], table["number"] = mix(original), np.arange(each)
        table.sort(order=["high", "low", "number"])
        starts = range_starts(np.ascontiguousarray(table["high"])).tolist()
        write_array(table_path(work, unit), table)
        write_json(
            work / "scan" / f"{unit:06}.json", {"documents": each, "starts": {EXACT: starts}}
        )
    options = replace(options, exact=True, url=False, task_bytes=1 << 40)
    plan = matching.make_plan([each] * units, options)
    made = [Unit(unit, "", unit, ()) for unit in range(units)]
    found = {"exact": 0.0, "near": 0.0, "merge": 0.0, "file": 0.0}
    found["exact"] = _seconds(lambda: matching.match(0, plan, made, work, options))
    for bucket in range(plan.buckets):
        task = plan.exact_parts + bucket
        seconds = _seconds(lambda task=task: matching.match(task, plan, made, work, options))  # type: ignore[misc]
        found["near"] += seconds / plan.buckets
    found["merge"] = _seconds(lambda: matching.merge_range(0, plan, work))
    file = next((work / "copies" / f"matches-{EXACT}").glob("*.npy"))
    found["file"] = _seconds(lambda: [read_links(file, 0, 0) for _ in range(50)]) / 50
    return found


def _seconds(call: Callable[[], Any]) -> float:
    started = time.process_time()
    call()
    return time.process_time() - started
