"""Runs `tokenize` on a sample in a temporary folder, and measures each of its tasks.

The phases are those of `tokenize` itself, so a step that is added to it is measured as well. The
sample is divided into made units, one per stratum and in the order of the sources. Before those of
a source, there are two units without documents: the first shows what a process spends once, such
as loading the models of the cleaning steps, and the second what every unit takes in addition to
its documents. The first unit with documents is preceded by a few of them, because libraries load
and build tables when they are first used.
"""

from __future__ import annotations

import contextlib
import copy
import io
import json
import os
import resource
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import Progress

from conf.errors import InputError
from data_pipeline.dedup import digests, index, matching
from data_pipeline.dedup.components import read_links
from data_pipeline.sizing.draw import Stratum, overlap
from data_pipeline.store.manifest import FILE
from data_pipeline.text import readers
from data_pipeline.text.corpus import SourceConfig, TokenizeConfig
from data_pipeline.text.readers import Row
from data_pipeline.text.units import SourceFile, Unit
from data_pipeline.tokenizing.prepare import prepare
from data_pipeline.tokenizing.tokenization import Tokenization
from data_pipeline.tokenizing.work import JobShard, Workers, WorkFolder

MEMORY = "memory"
"""Format of a source whose rows are in `SAMPLES`, by the path of the unit's file."""
SAMPLES: dict[str, list[Row]] = {}
EMPTY_UNITS = 2
FIRST_ROWS = 20
"""Number of documents with which each phase begins."""


def _read_memory(file: SourceFile, unit: Unit, source: SourceConfig) -> Iterator[Row]:
    yield from (row._replace(line=line) for line, row in enumerate(SAMPLES[file.path]))


readers.READERS[MEMORY] = _read_memory


@dataclass(frozen=True)
class Drawn:
    """A stratum with the made unit that holds its sample, and the unit's results.

    `once` and `fixed` are the units without documents of the same source.
    """

    stratum: Stratum
    unit: int
    once: int
    fixed: int
    encoded: dict[str, Any]


@dataclass(frozen=True)
class Link:
    """A duplicate in the sample.

    Attributes:
        unit: unit of the document.
        kind: name of the step that finds it.
        root: number of the group of duplicates.
        overlap: overlap of its text with that of the document that it repeats.
    """

    unit: int
    kind: str
    root: int
    overlap: float


@dataclass
class TrialResult:
    """The measurements of a trial.

    Attributes:
        drawn: the strata with their results.
        seconds: CPU seconds of each task, by phase.
        links: the duplicates in the sample.
        folder: the work folder, in which all results are kept.
        prepared: result of the prepare phase.
        base_bytes: resident memory of a process that has loaded its models.
        peaks: peak memory of this process in each phase, the sample included.
        first_seconds: CPU seconds of the first few documents of all phases.
        trained_bytes: bytes of text that the tokenizer was trained on; 0 if it was given.
        again: bytes of text and CPU seconds of a second training, on a part of the text.
    """

    drawn: list[Drawn]
    seconds: dict[str, list[float]]
    links: list[Link]
    folder: WorkFolder
    prepared: dict[str, Any]
    base_bytes: int
    peaks: dict[str, int]
    first_seconds: float
    trained_bytes: int
    again: tuple[int, float]


class Trial(Tokenization):
    """A tokenization in this process that measures its tasks."""

    seconds: dict[str, list[float]]
    peaks: dict[str, int]
    begun: set[str]
    first_seconds = 0.0
    base_bytes = 0

    def _run_phase(
        self, phase: str, tasks: list[Any], workers: Workers, progress: Progress
    ) -> bool:
        timed = [(self._timed, (phase, function, values)) for function, values in tasks]
        reset_peak()
        is_done = super()._run_phase(phase, timed, workers, progress)
        self.peaks[phase] = peak_bytes()
        return is_done

    def _timed(self, phase: str, function: Callable[..., Any], values: tuple[Any, ...]) -> Any:
        self._begin(phase, function, values)
        started = time.process_time()
        result = function(*values)
        self.seconds.setdefault(phase, []).append(time.process_time() - started)
        if not self.base_bytes:
            self.base_bytes = resident_bytes() - sum(map(_bytes, SAMPLES.values()))
        return result

    def _begin(self, phase: str, function: Callable[..., Any], values: tuple[Any, ...]) -> None:
        """Runs the first few documents of a phase, whose results are then overwritten."""
        unit, *rest = values
        rows = SAMPLES[unit.files[0].path] if isinstance(unit, Unit) else []
        if not rows or phase in self.begun:
            return
        self.begun.add(phase)
        SAMPLES["first"] = rows[:FIRST_ROWS]
        started = time.process_time()
        function(replace(unit, files=(SourceFile("first", "first", 0, ""),)), *rest)
        self.first_seconds += time.process_time() - started
        del SAMPLES["first"]


def _bytes(rows: list[Row]) -> int:
    return sum(len(row.text) for row in rows)


def resident_bytes() -> int:
    """Returns the resident memory of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def reset_peak() -> None:
    """Makes `peak_bytes` count from now on, where the system can do that."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_bytes() -> int:
    """Returns the peak of this process's memory."""
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def run_trial(config: TokenizeConfig, strata: list[Stratum], folder: Path) -> TrialResult:
    """Runs all phases on the sample of the strata. Raises InputError if nothing is left of it."""
    config = copy.deepcopy(config)
    config.out, config.workers = str(folder / "corpus"), 1
    units, drawn = _made_units(strata)
    for source in config.corpus.sources.values():
        source.format, source.max_malformed, source.max_bytes = MEMORY, 1 << 62, 0
    sizes = [_bytes(SAMPLES[unit.files[0].path]) for unit in units]
    config.tokenizer.train_bytes = len(units) * _budget(config.tokenizer.train_bytes, sizes)
    work = WorkFolder(Path(config.out), JobShard())
    work.path.mkdir(parents=True)
    earlier = index.against_folders(config.corpus.cleaning.dedup)
    trial = Trial(config, units, "plan", work, Console(file=io.StringIO()), earlier)
    trial.seconds, trial.peaks, trial.begun = {}, {}, set()
    try:
        made = trial.run()
        assert made is not None  # there are no other jobs
        (work.content / FILE).write_text(made.to_json())
        trained, again = _train_again(config, units, work, trial)
    except InputError as error:
        raise InputError(f"{error} This was found in the sample of the plan.") from None
    finally:
        SAMPLES.clear()
    results = [replace(one, encoded=work.result("encode", one.unit)) for one in drawn]
    return TrialResult(
        results,
        trial.seconds,
        _links(config, results, work),
        work,
        work.result("prepare", 0),
        trial.base_bytes,
        trial.peaks,
        trial.first_seconds,
        trained,
        again,
    )


def _budget(train_bytes: int, sizes: list[int]) -> int:
    """Returns the bytes to take of each unit so that they are about `train_bytes` in all.

    `prepare` takes as much of every unit, and made units are of very different sizes.
    """
    low, high = 1, max(1, *sizes)
    while low < high:
        middle = (low + high) // 2
        if sum(min(size, middle) for size in sizes) < train_bytes:
            low = middle + 1
        else:
            high = middle
    return low


def _made_units(strata: list[Stratum]) -> tuple[list[Unit], list[Drawn]]:
    units: list[Unit] = []
    drawn: list[Drawn] = []

    def add(source: str, rows: list[Row]) -> int:
        number = len(units)
        path = f"sample-{number}"
        SAMPLES[path] = rows
        units.append(Unit(number, source, number, (SourceFile(path, path, 0, ""),)))
        return number

    for source in dict.fromkeys(stratum.source for stratum in strata):
        once, fixed = (add(source, []) for _ in range(EMPTY_UNITS))
        for stratum in strata:
            if stratum.source == source:
                drawn.append(Drawn(stratum, add(source, stratum.rows), once, fixed, {}))
    return units, drawn


def _train_again(
    config: TokenizeConfig, units: list[Unit], work: WorkFolder, trial: Trial
) -> tuple[int, tuple[int, float]]:
    """Returns the bytes that a tokenizer was trained on, and those and the seconds of a second one.

    Two trainings tell apart what grows with the text and what does not.
    """
    if config.tokenizer.path:
        return 0, (0, 0.0)
    sizes = [_bytes(SAMPLES[unit.files[0].path]) for unit in units]
    budget = config.tokenizer.train_bytes // len(units)
    trained = sum(min(size, budget) for size in sizes)
    less = max(1, min(budget, max(sizes)) // 4)
    tokenizer = replace(config.tokenizer, train_bytes=less * len(units))
    started = time.process_time()
    prepare(replace(config, tokenizer=tokenizer), units, work.path)
    seconds = time.process_time() - started
    return trained, (sum(min(size, less) for size in sizes), seconds)


def _links(config: TokenizeConfig, drawn: list[Drawn], work: WorkFolder) -> list[Link]:
    """Returns the duplicates that the match and merge phases found in the sample."""
    if not digests.is_enabled(config.corpus):
        return []
    plan = matching.load_plan([], work.path, config.corpus.cleaning.dedup)
    rows = {one.unit: one.stratum.rows for one in drawn}
    # Documents are numbered among those that `scan` kept, and the sample has all rows.
    kept = {unit: np.load(digests.rows_path(work.path, unit))["number"].tolist() for unit in rows}
    found: dict[tuple[int, int], tuple[int, int]] = {}
    kinds: dict[tuple[int, int], str] = {}

    def add(path: Path, kind: str) -> None:
        for pair in read_links(path, 0, 1 << 63).T.tolist():
            (unit, number), (other, first) = (
                ((n >> 32) - plan.earlier_units, n & 0xFFFFFFFF) for n in pair
            )
            row = kept[unit][number]
            is_earlier = other < 0  # a document of an earlier corpus
            found[unit, row] = (other, first if is_earlier else kept[other][first])
            kinds[unit, row] = kind

    for number in range(plan.merge_tasks):
        # The kind that a document counts as comes last, as in `matching.duplicates_in`.
        if plan.buckets:
            nodes = plan.nodes(number, work.path)
            add(nodes.merged, digests.NEAR)
            add(nodes.settled, digests.NEAR)
        for kind in plan.digest_kinds:
            add(work.path / "copies" / kind / f"{number:06}.npy", kind)
    roots: dict[tuple[int, int], int] = {}
    links = []
    for (unit, number), first in found.items():
        while first in found:
            first = found[first]
        text = rows[unit][number].text
        # All documents of an earlier corpus are compared, and not only a sample of them.
        same = 1.0 if first[0] < 0 else overlap(text, rows[first[0]][first[1]].text)
        root = roots.setdefault(first, len(roots))
        links.append(Link(unit, kinds[unit, number], root, same))
    return links


def folder_bytes(folder: Path) -> int:
    """Returns the size of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def json_bytes(content: Any) -> int:
    """Returns the size of a JSON file."""
    return len(json.dumps(content))
