"""Measures how memory and work of deduplication grow with the number of documents.

Made signatures stand for a web corpus: two documents in five repeat an earlier one, some of them
one of a thousand boilerplate pages. Every task runs in a process of its own, one after the other,
and CPU seconds are reported. "Before" is the same work with one task per bucket, all clusters in
one process, and every unit reading what was dropped from all of them.

    python benchmarks/preparation_growth.py [--documents 1 4 16 64] [--before 16] [--folder DIR]
"""

from __future__ import annotations

import argparse
import multiprocessing
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks.figures import write_results
from benchmarks.machine import described, machine
from data_pipeline.cleaning.config import DedupOptions
from data_pipeline.dedup import matching, minhash
from data_pipeline.dedup.components import star_forest
from data_pipeline.dedup.digests import DIGEST, EXACT
from data_pipeline.dedup.ranges import RANGES, range_of_part, range_starts
from data_pipeline.files import write_array, write_json
from data_pipeline.splitmix import mix

DOCUMENTS_PER_UNIT = 83_000
"""Documents of a unit at 1.5 billion documents in 18,000 units."""
TARGET = 1_500_000_000
COPIES, BOILERPLATE, SHARED_KEYS = 0.4, 0.04, 0.7
DROPS = (1_000_000, 10_000_000, 100_000_000)


@dataclass
class Stage:
    """CPU seconds of all tasks of a stage, their number, and the largest of their peaks."""

    tasks: int = 0
    cpu_seconds: float = 0.0
    peak_mib: float = 0.0
    wall_seconds: float = field(default=0.0)

    def run(self, function: Callable[..., Any], *arguments: Any) -> None:
        """Runs one task in a new process."""
        context = multiprocessing.get_context("spawn")
        parent, child = context.Pipe()
        process = context.Process(target=_measured, args=(child, function, arguments))
        process.start()
        child.close()
        seconds, wall, peak = parent.recv()
        process.join()
        self.tasks += 1
        self.cpu_seconds += seconds
        self.wall_seconds += wall
        self.peak_mib = max(self.peak_mib, peak)


def _measured(pipe: Any, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    # Resets the peak, so that the imports of this process do not hide it.
    Path("/proc/self/clear_refs").write_text("5")
    before = memory_kib("VmRSS")
    started, wall = time.process_time(), time.monotonic()
    function(*arguments)
    seconds, wall = time.process_time() - started, time.monotonic() - wall
    pipe.send((seconds, wall, (memory_kib("VmHWM") - before) / 1024))


def memory_kib(name: str) -> int:
    """Returns a figure of this process's memory, as Linux counts it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))


def main() -> None:
    """Measures each size, extrapolates, and writes the figures after each size."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--documents", type=float, nargs="+", default=[1, 4, 16, 64], help="1e6")
    parser.add_argument("--before", type=float, default=16, help="largest size of `before`, 1e6")
    parser.add_argument("--task-mib", type=int, default=2048, help="dedup.task_bytes, in MiB")
    parser.add_argument("--drops", type=int, nargs="*", default=DROPS)
    parser.add_argument("--folder", type=Path, help="where to work")
    parser.add_argument(
        "--out", type=Path, default=Path("benchmarks/results/preparation_growth.json")
    )
    options = parser.parse_args()
    dedup = DedupOptions(minhash=True, task_bytes=options.task_mib << 20)
    figures: dict[str, Any] = {"machine": machine(), "task_mib": options.task_mib, "sizes": []}
    for millions in options.documents:
        with tempfile.TemporaryDirectory(dir=options.folder) as name:
            size = measure(int(millions * 1e6), Path(name), dedup, millions <= options.before)
        figures["sizes"].append(size)
        figures["at_1.5_billion"] = extrapolate(figures["sizes"][-1], DedupOptions(minhash=True))
        write_results(options.out, figures, table_of(figures))
    figures["drops"] = []
    for count in options.drops:
        with tempfile.TemporaryDirectory(dir=options.folder) as name:
            figures["drops"].append(measure_drops(count, Path(name), dedup))
        write_results(options.out, figures, table_of(figures))


def measure(documents: int, work: Path, options: DedupOptions, before: bool) -> dict[str, Any]:
    """Returns the figures of one size: each stage, what was dropped, and bytes on disk."""
    units = [
        (unit, min(DOCUMENTS_PER_UNIT, documents - unit * DOCUMENTS_PER_UNIT))
        for unit in range(-(-documents // DOCUMENTS_PER_UNIT))
    ]
    for unit, count in units:
        make_unit(unit, count, work, options)
    paths = [(unit, work / "minhash" / f"{unit:06}.keys") for unit, _ in units]
    plan = matching.make_plan([count for _, count in units], options)
    size: dict[str, Any] = {"documents": documents, "units": len(units)}
    size["signature_bytes_per_document"] = folder_bytes(work / "minhash") / documents
    now = {name: Stage() for name in ("exact", "near", "merge", "settle")}
    for task in range(plan.exact_parts):
        now["exact"].run(match_exact, task, plan, len(units), work)
    for task in range(plan.exact_parts, plan.match_tasks):
        now["near"].run(match_near, task, plan, paths, work, options)
    for number in range(plan.merge_tasks):
        now["merge"].run(matching.merge_range, number, plan, work)
    now["settle"].run(matching.settle_ranges, plan, work)
    size["stages"] = {name: vars(stage) for name, stage in now.items()}
    size["links_bytes_per_document"] = folder_bytes(work / "copies") / documents
    near = work / "copies" / "near"
    found = [np.load(path)[0] for kind in ("merged", "settled") for path in near.glob(f"{kind}-*")]
    size["dropped_share"] = sum(map(len, found)) / documents
    if before:
        shutil.rmtree(work / "copies")
        old = {name: Stage() for name in ("near", "resolve")}
        for bucket in range(options.buckets):
            old["near"].run(match_whole, bucket, paths, work, options)
        old["resolve"].run(resolve_whole, work)
        size["before"] = {name: vars(stage) for name, stage in old.items()}
        whole = np.load(work / "copies" / "dropped.npy")
        size["same_documents_dropped"] = bool(
            np.array_equal(np.sort(np.concatenate(found)), whole[0])
        )
    return size


def make_unit(unit: int, count: int, work: Path, options: DedupOptions) -> None:
    """Writes the digests and signatures of a made unit."""
    draw = np.random.default_rng([7, unit])
    number = np.arange(count, dtype=np.uint64) + np.uint64(unit * DOCUMENTS_PER_UNIT)
    kind = draw.random(count)
    original = np.where(kind < BOILERPLATE, draw.integers(0, 1000, count), number)
    earlier = (draw.random(count) * number).astype(np.uint64)
    original = np.where((kind >= BOILERPLATE) & (kind < COPIES), earlier, original)
    shared = draw.random((options.buckets, count)) < SHARED_KEYS
    bucket = (np.arange(options.buckets, dtype=np.uint64) << np.uint64(40))[:, None]
    keys = mix(np.where(shared, original.astype(np.uint64), number) + bucket)
    path = work / "minhash" / f"{unit:06}.keys"
    minhash.save_signatures(path, keys, np.arange(count, dtype=np.uint32))
    table = np.empty(count, DIGEST)
    table["high"] = mix(np.where(draw.random(count) < 0.1, original.astype(np.uint64), number))
    table["low"], table["number"] = 0, np.arange(count)
    table.sort(order=["high", "number"])
    write_array(work / "scan" / f"{unit:06}.npy", table)
    starts = range_starts(np.ascontiguousarray(table["high"])).tolist()
    write_json(work / "scan" / f"{unit:06}.json", {"documents": count, "starts": {EXACT: starts}})


@dataclass(frozen=True)
class MadeUnit:
    """Stands for a unit of text: all that matching needs is its number."""

    id: int


def match_exact(task: int, plan: matching.DedupPlan, units: int, work: Path) -> None:
    """Runs an exact task of the match phase."""
    made: Any = [MadeUnit(number) for number in range(units)]
    links = matching.match_exact(task, plan.exact_parts, made, work)
    write_array(work / "copies" / "matches-exact_duplicates" / f"{task:06}.npy", links)


def match_near(
    task: int,
    plan: matching.DedupPlan,
    paths: list[tuple[int, Path]],
    work: Path,
    options: DedupOptions,
) -> None:
    """Runs a near task of the match phase."""
    bucket, part = divmod(task - plan.exact_parts, plan.near_parts)
    first, end = range_of_part(part, plan.near_parts)
    links = minhash.match_keys(bucket, first, end, paths, options)
    write_array(work / "copies" / "matches-near_duplicates" / f"{bucket:03}-{part:03}.npy", links)


def match_whole(
    bucket: int, paths: list[tuple[int, Path]], work: Path, options: DedupOptions
) -> None:
    """Matches a whole bucket in one task."""
    links = minhash.match_keys(bucket, 0, RANGES, paths, options)
    write_array(work / "copies" / "whole" / f"{bucket:03}.npy", links)


def resolve_whole(work: Path) -> None:
    """Clusters all links in one process."""
    forest = np.empty((2, 0), np.uint64)
    for path in sorted((work / "copies" / "whole").glob("*.npy")):
        forest = star_forest(np.concatenate([forest, np.load(path)], 1))
    write_array(work / "copies" / "dropped.npy", forest)


def measure_drops(drops: int, work: Path, options: DedupOptions) -> dict[str, Any]:
    """Returns the time in which a unit reads its dropped documents, of `drops` in all units.

    Two documents in five are dropped. `before` reads the units of all of them.
    """
    documents = [DOCUMENTS_PER_UNIT] * (-(-drops * 5 // 2 // DOCUMENTS_PER_UNIT))
    plan = matching.make_plan(documents, options)
    draw = np.random.default_rng(3)
    for number in range(plan.merge_tasks):
        nodes = plan.nodes(number, work)
        tables = []
        for unit in range(*plan.first_units[number : number + 2]):
            chosen = np.sort(draw.permutation(DOCUMENTS_PER_UNIT)[: DOCUMENTS_PER_UNIT * 2 // 5])
            tables.append(chosen.astype(np.uint64) + np.uint64(unit << 32))
        links = np.concatenate(tables)
        write_array(nodes.merged, np.stack([links, np.zeros_like(links)]))
        write_array(nodes.settled, np.empty((2, 0), np.uint64))
        path = work / "copies" / "exact_duplicates" / f"{number:06}.npy"
        write_array(path, np.empty((2, 0), np.uint64))
    sample = list(range(0, len(documents), max(1, len(documents) // 50)))
    now, before = Stage(), Stage()
    now.run(read_drops, sample, plan, work)
    before.run(read_all_drops, sample[:5], plan, work)
    return {
        "drops": drops,
        "ms_per_unit": now.cpu_seconds * 1e3 / len(sample),
        "peak_mib": now.peak_mib,
        "before_ms_per_unit": before.cpu_seconds * 1e3 / len(sample[:5]),
        "before_peak_mib": before.peak_mib,
    }


def read_drops(sample: list[int], plan: matching.DedupPlan, work: Path) -> None:
    """Reads what is dropped from some units."""
    numbers = np.arange(DOCUMENTS_PER_UNIT)
    for unit in sample:
        assert len(matching.duplicates_in(unit, numbers, plan, work)) == len(numbers) * 2 // 5


def read_all_drops(sample: list[int], plan: matching.DedupPlan, work: Path) -> None:
    """Reads the units of all dropped documents for each of some units."""
    for unit in sample:
        for number in range(plan.merge_tasks):
            table = np.load(plan.nodes(number, work).merged, mmap_mode="r")
            owner = (table[0] >> np.uint64(32)).astype(np.uint32)
            low, high = np.searchsorted(owner, [unit, unit + 1])
            dict.fromkeys(table[0, low:high].tolist(), matching.NEAR)


def extrapolate(size: dict[str, Any], options: DedupOptions) -> dict[str, Any]:
    """Returns what 1.5 billion documents take, in proportion to the largest size measured."""
    factor = TARGET / size["documents"]
    plan = matching.make_plan([DOCUMENTS_PER_UNIT] * (TARGET // DOCUMENTS_PER_UNIT), options)
    stages = size["stages"]
    parallel = sum(stages[name]["cpu_seconds"] for name in ("exact", "near", "merge"))
    bytes_each = size["signature_bytes_per_document"] + size["links_bytes_per_document"] + 20
    return {
        "measured_at_documents": size["documents"],
        "cpu_hours_of_match_and_merge": parallel * factor / 3600,
        "hours_of_settle_in_one_process": stages["settle"]["cpu_seconds"] * factor / 3600,
        "match_tasks": plan.match_tasks,
        "merge_tasks": plan.merge_tasks,
        "memory_of_a_task_mib": options.task_bytes >> 20,
        "disk_in_between_gb": bytes_each * TARGET / 1e9,
        "files": 3 * (TARGET // DOCUMENTS_PER_UNIT) + plan.match_tasks + 4 * plan.merge_tasks,
    }


def folder_bytes(folder: Path) -> int:
    """Returns the size of all files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def table_of(figures: dict[str, Any]) -> str:
    """Returns the figures as Markdown."""
    return "\n".join(_lines(figures)) + "\n"


def _lines(figures: dict[str, Any]) -> Iterator[str]:
    about = str(__doc__).split("\n\n")
    yield f"{about[0]} {about[1]} {described(figures['machine'])}.".replace("\n", " ")
    yield ""
    yield "| documents | stage | tasks | CPU s in all | per million documents | peak MiB per task |"
    yield "|---|---|---|---|---|---|"
    for size in figures["sizes"]:
        millions = size["documents"] / 1e6
        stages = dict(size["stages"])
        stages |= {f"before: {name}": stage for name, stage in size.get("before", {}).items()}
        for name, stage in stages.items():
            seconds = stage["cpu_seconds"]
            yield (
                f"| {millions:g}M | {name} | {stage['tasks']} | {seconds:.1f} | "
                f"{seconds / millions:.2f} | {stage['peak_mib']:,.0f} |"
            )
    yield ""
    same = [size["same_documents_dropped"] for size in figures["sizes"] if "before" in size]
    yield (
        f"A task may use {figures['task_mib']:,} MiB. The same documents are dropped as before: "
        f"{all(same)}, in {len(same)} sizes."
    )
    if figures.get("drops"):
        yield ""
        yield "| drops | ms per unit | peak MiB | before: ms per unit | before: peak MiB |"
        yield "|---|---|---|---|---|"
        for row in figures["drops"]:
            yield (
                f"| {row['drops'] // 10**6}M | {row['ms_per_unit']:.1f} | {row['peak_mib']:.0f} | "
                f"{row['before_ms_per_unit']:.1f} | {row['before_peak_mib']:.0f} |"
            )
    goal = figures["at_1.5_billion"]
    yield ""
    yield (
        f"Extrapolated from {goal['measured_at_documents'] / 1e6:g}M to 1,500M documents in "
        "proportion: "
        f"{goal['cpu_hours_of_match_and_merge']:.1f} CPU hours in {goal['match_tasks']:,} match "
        f"tasks and {goal['merge_tasks']:,} merge tasks of {goal['memory_of_a_task_mib']:,} MiB, "
        f"{goal['hours_of_settle_in_one_process']:.2f} hours of one process to settle, "
        f"{goal['disk_in_between_gb']:,.0f} GB of disk in between, {goal['files']:,} files."
    )


if __name__ == "__main__":
    main()
