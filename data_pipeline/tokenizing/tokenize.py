"""`python -m data_pipeline tokenize`: a corpus to a folder of shards with a manifest.

Phases: scan (rules, cleaning, digests), match (copies), prepare (the tokenizer), encode, and the
manifest last. Each is tasks that any process or job may take; what is done stays in
`<out>.partial` until the folder is renamed into place.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from conf.errors import InputError
from conf.files import restore
from conf.output_kinds import CORPUS
from conf.outputs import Output
from data_pipeline.dedup import duplicates as copies
from data_pipeline.store import storage
from data_pipeline.store.manifest import FILE, load_manifest, tokenizer_fingerprint
from data_pipeline.text.corpus import CorpusConfig, TokenizeConfig
from data_pipeline.text.selection import chain_of
from data_pipeline.text.units import Unit, plan_units
from data_pipeline.tokenizing.encoding import Target, encode_unit
from data_pipeline.tokenizing.finish import check_sources, make_manifest, print_summary
from data_pipeline.tokenizing.prepare import prepare
from data_pipeline.tokenizing.tokenizer import check_tokenizer
from data_pipeline.tokenizing.work import Share, Workers, WorkFolder

FORMAT = 2
"""Counts changes of this code that change what it writes."""

AFTER_THE_SCAN = ("name", "held_out_fraction", "fit")
"""Settings of a corpus that the first pass and the search for copies do not depend on."""

Task = tuple[Callable[..., Any], tuple[Any, ...]]


def tokenize(config: TokenizeConfig) -> None:
    """Makes `config.out`, goes on where an earlier call stopped, or says that it is there already
    for the same inputs."""
    console = Console()
    out = Path(config.out)
    if storage.is_remote(config.out):
        raise InputError(f"out={config.out} is remote: make the folder here and copy it.")
    output = Output(config.out, CORPUS, config.overwrite, [config.tokenizer.path])
    output.check_foreign()
    share = Share.of_job(config.rank, config.world)
    check_tokenizer(config.tokenizer)
    units = plan_units(config.corpus)
    inputs, scanned = fingerprint_inputs(config, units)
    read = {os.path.dirname(file.path) for unit in units for file in unit.files}
    output = replace(output, inputs=[*output.inputs, *sorted(read)])
    output.check_foreign()
    folder = WorkFolder(output.path, share)
    folder.check()
    ours = folder.path.exists() and folder.inputs() in (inputs, None)
    if not ours and _up_to_date(output, inputs, console):
        return
    started = time.monotonic()
    with folder.locked(inputs, scanned) as resumed:
        # Made while we asked for the lock, or by one that was killed before it tidied up.
        restore(folder.corpus, output.path)
        if folder.renamed():
            output = replace(output, overwrite=False)
        if _up_to_date(output, inputs, console):
            folder.remove()
            return
        if resumed and folder.begun():
            console.print(f"going on with {folder.path}", highlight=False, soft_wrap=True)
        try:
            finished = Tokenization(config, units, inputs, folder, console).run()
        except InputError as error:
            if not folder.begun():
                folder.remove()
                raise
            raise InputError(f"{error} What was done so far is kept in {folder.path}.") from None
        if not finished:
            return
        folder.mark_whole()
        output.put(folder.corpus)
        folder.remove()
    print_summary(load_manifest(out), console)
    seconds = time.monotonic() - started
    console.print(f"made {out} in {seconds:.0f} s", highlight=False, soft_wrap=True)


class Tokenization:
    """The phases of the work on one corpus."""

    def __init__(
        self,
        config: TokenizeConfig,
        units: list[Unit],
        inputs: str,
        folder: WorkFolder,
        console: Console,
    ) -> None:
        self.config = config
        self.corpus: CorpusConfig = config.corpus
        self.units = units
        self.inputs = inputs
        self.folder = folder
        self.console = console
        self.made = folder.corpus

    def run(self) -> bool:
        """Does this job's share of what is left; False where other jobs have work to do first."""
        # Tokenizers must not start threads of their own beside the processes.
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        with Workers(self.config.workers) as workers, _progress(self.console) as progress:
            phases: list[tuple[str, Callable[[], list[Task]]]] = [
                ("prepare", self._prepare),
                ("encode", self._encode),
            ]
            if copies.needed(self.corpus):
                phases[:0] = [("scan", self._scan), ("match", self._match)]
            for phase, make_tasks in phases:
                if not self._run_phase(phase, make_tasks(), workers, progress):
                    return False
            if self.folder.share.rank:
                self._say("encode is done; the job of rank 0 writes the manifest")
                return False
        manifest = make_manifest(
            self.corpus,
            self.units,
            self.inputs,
            self.made,
            self.folder.result("prepare", 0),
            [self.folder.result("encode", unit.id) for unit in self.units],
            self.console,
        )
        (self.made / FILE).write_text(manifest.to_json())
        return True

    def _run_phase(
        self, phase: str, tasks: list[Task], workers: Workers, progress: Progress
    ) -> bool:
        left = self.folder.left(phase, len(tasks))
        if not left:
            return True
        mine = self.folder.share.of(left)
        by_unit = phase in ("scan", "encode")
        size_of = (lambda task: self.units[task].bytes) if by_unit else (lambda task: 1)
        bar = progress.add_task(phase, total=sum(map(size_of, mine)) or 1, said="")
        started, done, tokens = time.monotonic(), 0, 0
        jobs = [(task, *tasks[task]) for task in mine]
        for task, result in workers.run(self.folder, phase, jobs):
            done += size_of(task)
            seconds = time.monotonic() - started
            said = f"{done / 1e6 / seconds:.1f} MB/s" if by_unit else ""
            if phase == "encode":
                tokens += sum(e["tokens"] for part in result["entries"].values() for e in part)
                said += f"  {tokens / seconds:,.0f} tokens/s"
            progress.update(bar, completed=done, said=said)
        waiting = self.folder.left(phase, len(tasks))
        if waiting:
            self._say(
                f"{phase}: this job's share is done, {len(waiting)} of {len(tasks)} tasks are "
                "other jobs'; when those are done run the same command again"
            )
        return not waiting

    def _say(self, text: str) -> None:
        share = self.folder.share
        self.console.print(
            f"rank {share.rank} of {share.world}: {text}.", highlight=False, soft_wrap=True
        )

    def _scan(self) -> list[Task]:
        return [(copies.scan_unit, (unit, self.corpus, self.folder.path)) for unit in self.units]

    def _match(self) -> list[Task]:
        work, dedup = self.folder.path, self.corpus.cleaning.dedup
        check_sources(self.corpus, self.units, work)
        exact = copies.exact_tasks(self.units, work) if dedup.exact else 0
        near = dedup.buckets if dedup.minhash else 0
        return [
            *((copies.match_exact, (n, exact, self.units, work)) for n in range(exact)),
            *((copies.match_near, (n, near, self.corpus, work)) for n in range(near)),
        ]

    def _prepare(self) -> list[Task]:
        wanted = self.config.tokenizer
        if wanted.path is None and self.folder.left("prepare", 1) and not self.folder.share.rank:
            self.console.print(
                f"training a tokenizer of {wanted.vocab_size:,} ids on up to "
                f"{wanted.train_bytes / 1e6:,.0f} MB of text",
                highlight=False,
                soft_wrap=True,
            )
        return [(prepare, (self.config, self.units, self.folder.path))]

    def _encode(self) -> list[Task]:
        about = self.folder.result("prepare", 0)
        if about["not_added"]:
            self.console.print(
                f"tokenizer.path={self.config.tokenizer.path} adds "
                f"{' '.join(about['not_added'])} to each text; documents are encoded without, and "
                "so will the exported tokenizer.",
                style="yellow",
                markup=False,
                soft_wrap=True,
            )
        if about["encoder_note"]:
            self.console.print(
                f"encoding with tokenizers, many times slower: {about['encoder_note']}.",
                style="yellow",
                soft_wrap=True,
            )
        ids = about["tokenizer"]
        target = Target(
            self.made,
            about["encoder"],
            about["avoid"],
            about["dtype"],
            ids["eos_id"],
            ids["pad_id"],
        )
        return [(encode_unit, (unit, self.corpus, self.folder.path, target)) for unit in self.units]


def fingerprint_inputs(config: TokenizeConfig, units: list[Unit]) -> tuple[str, str]:
    """Returns the sha256 of what decides the output, and of what decides the first pass and the
    search for copies: settings, models of the cleaning steps, and name, size and time of every
    file. The text itself is not read again."""
    corpus = asdict(config.corpus)
    for source in corpus["sources"].values():
        del source["max_malformed"]  # a limit that was raised throws no work away
    what = {
        "format": FORMAT,
        "corpus": corpus,
        "tokenizer": asdict(config.tokenizer),
        "files": [
            (unit.source, file.name, file.bytes, file.version, unit.start)
            for unit in units
            for file in unit.files
        ],
        "cleaning": [
            chain.fingerprint()
            for source in config.corpus.sources
            if (chain := chain_of(config.corpus, source)) is not None
        ],
    }
    scanned = {key: what[key] for key in ("format", "files", "cleaning")}
    scanned["corpus"] = {key: corpus[key] for key in corpus if key not in AFTER_THE_SCAN}
    if config.tokenizer.path:
        what["tokenizer_sha256"] = tokenizer_fingerprint(Path(config.tokenizer.path))
    return _digest(what), _digest(scanned)


def _digest(what: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()


def _up_to_date(output: Output, inputs: str, console: Console) -> bool:
    out = Path(output.given)
    if output.overwrite or not (out / FILE).is_file():
        return False
    found = load_manifest(out)
    if found.inputs != inputs:
        output.check("a corpus from other files or settings")
    missing = found.missing_files()
    if missing:
        raise InputError(
            f"{out} lacks {missing[0]}{f' and {len(missing) - 1} more' if missing[1:] else ''} of "
            "its manifest: make it again with overwrite=true."
        )
    console.print(f"{out} is up to date: the same files, sizes and settings.", soft_wrap=True)
    print_summary(found, console)
    return True


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description:<9}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        TextColumn("{task.fields[said]}"),
        TimeElapsedColumn(),
        console=console,
    )
