"""The phases that tokenize a corpus.

The first three, `resolve` and `record` run only with deduplication, and the next four only if
repeated paragraphs are removed.

    scan       applies rules and cleaning steps, and computes digests of the documents
    match      compares the documents
    merge      collects the duplicates
    settle     completes the clusters of near duplicates; otherwise a part of prepare
    paragraphs selects the paragraphs of the documents that are left
    count      compares the paragraphs
    collect    collects what to remove
    prepare    trains or copies the tokenizer
    encode     writes the shards
    resolve    finds the original of each duplicate
    record     writes which document each duplicate repeats
    manifest   writes the cleaning report, and the manifest last

Each phase consists of tasks that any process or job can run. Only the job of rank 0 runs the last
three phases.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from data_pipeline.dedup import digests, index, matching, originals, paragraphs
from data_pipeline.dedup.earlier import Folders
from data_pipeline.dedup.tables import FOLDER as DUPLICATES
from data_pipeline.store.manifest import INDEX, Manifest
from data_pipeline.text.corpus import CorpusConfig, TokenizeConfig
from data_pipeline.text.units import Unit
from data_pipeline.tokenizing.encoding import Target, encode_unit
from data_pipeline.tokenizing.finish import check_sources, make_manifest
from data_pipeline.tokenizing.prepare import prepare
from data_pipeline.tokenizing.progress import write_task_count
from data_pipeline.tokenizing.work import JobShard, Workers, WorkFolder

Task = tuple[Callable[..., Any], tuple[Any, ...]]


def phases_of(corpus: CorpusConfig) -> list[str]:
    """Returns the names of the phases of a corpus before the manifest."""
    compared = ["scan", "match", "merge"] if digests.is_enabled(corpus) else []
    repeated = ["settle", "paragraphs", "count", "collect"]
    return [
        *compared,
        *(repeated if corpus.cleaning.dedup.paragraphs else []),
        *("prepare", "encode"),
    ]


class Tokenization:
    """Runs the phases that tokenize one corpus."""

    def __init__(
        self,
        config: TokenizeConfig,
        units: list[Unit],
        inputs: str,
        folder: WorkFolder,
        console: Console,
        earlier: Folders = (),
        base: Manifest | None = None,
    ) -> None:
        """Creates the phases for `units`.

        earlier: index folders of earlier preparations, whose documents are not to be repeated.
        base: the corpus that documents are added to, or None for a new corpus.
        """
        self.config = config
        self.corpus: CorpusConfig = config.corpus
        self.units = units
        self.inputs = inputs
        self.folder = folder
        self.console = console
        self.earlier = earlier
        self.base = base
        self.made = folder.content
        self.job_shard = folder.job_shard

    def run(self) -> Manifest | None:
        """Runs this job's remaining tasks, and returns the manifest of the shards.

        Returns None if other jobs must finish first.
        """
        # The worker processes already use all cores, so tokenizers must not start threads.
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        with Workers(self.config.workers) as workers, _progress(self.console) as progress:
            for phase in phases_of(self.corpus):
                tasks: list[Task] = getattr(self, f"_{phase}")()
                if not self._run_phase(phase, tasks, workers, progress):
                    return None
            if self.folder.job_shard.rank:
                self._print("encode: done. The job of rank 0 writes the manifest")
                return None
            clusters: list[Any] = []
            if digests.is_enabled(self.corpus):
                self.job_shard = JobShard()  # no other job is waited for, so this one runs all
                for phase, make_tasks in (("resolve", self._resolve), ("record", self._record)):
                    tasks = make_tasks()
                    self._run_phase(phase, tasks, workers, progress)
                clusters = [self.folder.result(phase, task) for task in range(len(tasks))]
                options = self.corpus.cleaning.dedup
                plan = matching.load_plan([], self.folder.path, options)
                originals.record_earlier(plan, self.folder.path, self.made, self._corpus_folder)
        # Files that a process was writing when it was killed are removed.
        for pattern in (".*", f"{INDEX}/.*", f"{DUPLICATES}/.*"):
            for path in self.made.glob(pattern):
                path.unlink()
        results = [self.folder.result("encode", unit.id) for unit in self.units]
        if self.config.keep_index:
            tables = [result["index"] for result in results]
            index.write_index(self.made, self.corpus, self.units, tables)
        return make_manifest(
            self.corpus,
            self.units,
            self.inputs,
            self.made,
            self.folder.result("prepare", 0),
            results,
            clusters,
            self.console,
            self.base,
        )

    def _run_phase(
        self, phase: str, tasks: list[Task], workers: Workers, progress: Progress
    ) -> bool:
        write_task_count(self.folder.path, phase, len(tasks))
        remaining = self.folder.remaining(phase, len(tasks))
        if not remaining:
            return True
        own = self.job_shard.select(remaining)
        by_unit = phase in ("scan", "encode")
        size_of = (lambda task: self.units[task].bytes) if by_unit else (lambda task: 1)
        bar = progress.add_task(phase, total=sum(map(size_of, own)) or 1, speed="")
        started, done, tokens = time.monotonic(), 0, 0
        jobs = [(task, *tasks[task]) for task in own]
        for task, result in workers.run(self.folder, phase, jobs):
            done += size_of(task)
            seconds = time.monotonic() - started
            speed = f"{done / 1e6 / seconds:.1f} MB/s" if by_unit else ""
            if phase == "encode":
                tokens += sum(e["tokens"] for part in result["entries"].values() for e in part)
                speed += f"  {tokens / seconds:,.0f} tokens/s"
            progress.update(bar, completed=done, speed=speed)
        remaining = self.folder.remaining(phase, len(tasks))
        if remaining:
            self._print(
                f"{phase}: this job is done, but {len(remaining)} of {len(tasks)} tasks of other "
                "jobs are not. Run the same command again when these jobs are done"
            )
        return not remaining

    def _print(self, text: str) -> None:
        job = self.folder.job_shard
        self.console.print(
            f"rank {job.rank} of {job.world}: {text}.", highlight=False, soft_wrap=True
        )

    def _scan(self) -> list[Task]:
        return [(digests.scan_unit, (unit, self.corpus, self.folder.path)) for unit in self.units]

    def _match(self) -> list[Task]:
        work, options = self.folder.path, self.corpus.cleaning.dedup
        check_sources(self.corpus, self.units, work)
        plan = matching.load_plan(self.units, work, options, self.earlier)
        return [
            (matching.match, (number, plan, self.units, work, options))
            for number in range(plan.match_tasks)
        ]

    def _merge(self) -> list[Task]:
        work = self.folder.path
        plan = matching.load_plan(self.units, work, self.corpus.cleaning.dedup)
        return [(matching.merge_range, (number, plan, work)) for number in range(plan.merge_tasks)]

    def _settle(self) -> list[Task]:
        work = self.folder.path
        plan = matching.load_plan(self.units, work, self.corpus.cleaning.dedup)
        return [(matching.settle_ranges, (plan, work))]

    def _paragraphs(self) -> list[Task]:
        work = self.folder.path
        plan = matching.load_plan(self.units, work, self.corpus.cleaning.dedup)
        return [(paragraphs.filter_unit, (unit.id, plan, work)) for unit in self.units]

    def _count(self) -> list[Task]:
        work, options = self.folder.path, self.corpus.cleaning.dedup
        units = [unit.id for unit in self.units]
        plan = paragraphs.load_plan(units, work, options)
        return [
            (paragraphs.count_range, (part, plan, units, work, options))
            for part in range(plan.parts)
        ]

    def _collect(self) -> list[Task]:
        work, options = self.folder.path, self.corpus.cleaning.dedup
        plan = paragraphs.load_plan([], work, options)
        tops = [self.folder.result("count", part) for part in range(plan.parts)]
        return [
            (paragraphs.collect, (number, plan, tops if number == 0 else [], work))
            for number in range(plan.collect_tasks)
        ]

    def _prepare(self) -> list[Task]:
        config = self.config.tokenizer
        is_pending = bool(self.folder.remaining("prepare", 1)) and not self.folder.job_shard.rank
        if config.path is None and is_pending and self.base is None:
            self.console.print(
                f"training a tokenizer of {config.vocab_size:,} ids on up to "
                f"{config.train_bytes / 1e6:,.0f} MB of text",
                highlight=False,
                soft_wrap=True,
            )
        return [(prepare, (self.config, self.units, self.folder.path, self.base))]

    def _encode(self) -> list[Task]:
        prepared = self.folder.result("prepare", 0)
        if prepared["not_added"]:
            self.console.print(
                f"tokenizer.path={self.config.tokenizer.path} adds "
                f"{' '.join(prepared['not_added'])} to each text. Documents are encoded without "
                "these tokens, and the exported tokenizer will not add them.",
                style="yellow",
                markup=False,
                soft_wrap=True,
            )
        if prepared["encoder_note"]:
            self.console.print(
                "encoding with tokenizers, which is many times slower than gigatoken: "
                f"{prepared['encoder_note']}.",
                style="yellow",
                soft_wrap=True,
            )
        ids = prepared["tokenizer"]
        target = Target(
            self.made,
            self.made / ids["file"] if self.base is None else self.base.tokenizer_path.absolute(),
            prepared["encoder"],
            prepared["dtype"],
            ids["eos_id"],
            ids["pad_id"],
            self.config.keep_index,
        )
        return [(encode_unit, (unit, self.corpus, self.folder.path, target)) for unit in self.units]

    def _resolve(self) -> list[Task]:
        plan = matching.load_plan([], self.folder.path, self.corpus.cleaning.dedup)
        return [
            (originals.resolve_range, (number, plan, self.folder.path))
            for number in range(plan.merge_tasks)
        ]

    def _record(self) -> list[Task]:
        work = self.folder.path
        plan = matching.load_plan([], work, self.corpus.cleaning.dedup)
        rows = originals.first_rows(self.units, work)
        # Editions of the corpus are named by their paths in it, other corpora by their own paths.
        earlier = []
        for path, count in plan.earlier:
            place = Path(path).parent
            inside = place.is_relative_to(self._corpus_folder)
            folder = place.relative_to(self._corpus_folder) if inside else place
            earlier.append((str(folder), count))
        originals.record_files(self.corpus, self.units, rows, self.made, earlier)
        tasks: list[Task] = []
        for number, bounds in enumerate(pairwise(plan.first_units)):
            part = slice(*bounds)
            named = (number, plan, self.units[part], rows[part], work, self.made)
            tasks.append((originals.record_range, (*named, self.config.keep_index)))
        return tasks

    @property
    def _corpus_folder(self) -> Path:
        """Folder of the corpus that documents are added to, or the one that is being made."""
        return (self.made if self.base is None else self.base.folder).absolute()


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description:<9}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        TextColumn("{task.fields[speed]}"),
        TimeElapsedColumn(),
        console=console,
    )
