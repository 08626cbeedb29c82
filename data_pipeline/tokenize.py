"""`python -m data_pipeline tokenize`: a corpus to a folder of shards with a manifest.

Plan units, scan them (rules, copies, split), train or load the tokenizer, encode. Both passes run
in parallel processes; the folder is renamed into place when all of it is there.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from conf.errors import InputError
from data_pipeline.corpus import CorpusConfig, TokenizeConfig, TokenizerConfig
from data_pipeline.manifest import FILE, Manifest, load_manifest, tokenizer_fingerprint
from data_pipeline.readers import Unit, plan_units, read_unit
from data_pipeline.selection import HELD_OUT, TRAIN, Chosen, choose, scan
from data_pipeline.shard_writer import write_unit
from data_pipeline.tokenizer import (
    load_tokenizer,
    special_ids,
    token_bytes,
    train_tokenizer,
    vocab_size_of,
)

FORMAT = 1
"""Counts changes of this code that change what it writes."""


def tokenize(config: TokenizeConfig) -> None:
    """Makes `config.out`, or says that it is there already for the same inputs."""
    console = Console()
    units = plan_units(config.corpus)
    inputs = fingerprint_inputs(config, units)
    out = Path(config.out)
    if (out / FILE).is_file() and not config.overwrite:
        found = load_manifest(out)
        if found.inputs == inputs:
            console.print(
                f"{out} is up to date: the same files, sizes and settings.", soft_wrap=True
            )
            print_summary(found, console)
            return
        raise InputError(
            f"{out} was made from other files or settings: name another out=, or overwrite=true."
        )
    if out.exists() and not (out / FILE).is_file() and (out.is_file() or any(out.iterdir())):
        raise InputError(f"out={out} is not empty and holds no corpus: name another folder.")
    started = time.monotonic()
    temporary = out.with_name(out.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        manifest = make(config, units, inputs, temporary, console)
        (temporary / FILE).write_text(manifest.to_json())
        shutil.rmtree(out, ignore_errors=True)
        temporary.rename(out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    print_summary(manifest, console)
    seconds = time.monotonic() - started
    console.print(f"made {out} in {seconds:.0f} s", highlight=False, soft_wrap=True)


def make(
    config: TokenizeConfig, units: list[Unit], inputs: str, folder: Path, console: Console
) -> Manifest:
    """Writes everything but the manifest into `folder`."""
    corpus = config.corpus
    # Tokenizers must not start threads of their own beside the processes.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    workers = config.workers or len(os.sched_getaffinity(0))
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["data_pipeline.megatron_writer"])
    with ProcessPoolExecutor(workers, mp_context=context) as pool, _progress(console) as progress:
        total = sum(file.bytes for unit in units for file in unit.files) or None
        task = progress.add_task("reading", total=total, said="")
        scans = _in_order(
            {pool.submit(scan, unit, corpus.sources[unit.source]): unit for unit in units},
            progress,
            task,
        )
        chosen, counts = choose(corpus, units, scans)
        _check_splits(corpus, units, chosen, counts, progress.console)
        progress.update(task, description="tokenizer", said="")
        make_tokenizer(config.tokenizer, corpus, units, chosen, folder / "tokenizer.json")
        tokenizer = load_tokenizer(folder / "tokenizer.json")
        vocab_size = vocab_size_of(tokenizer)
        ids = special_ids(tokenizer, config.tokenizer)
        np.save(folder / "token_bytes.npy", token_bytes(tokenizer))
        progress.reset(task, description="encoding")
        jobs = {
            pool.submit(write_unit, unit, corpus, take, folder, ids["eos_id"]): unit
            for unit, take in zip(units, chosen, strict=True)
        }
        written = _in_order(jobs, progress, task, _tokens_written)
    splits: dict[str, dict[str, list[dict[str, Any]]]] = {TRAIN: {}, HELD_OUT: {}}
    for unit, entries in zip(units, written, strict=True):
        for split, shards in entries.items():
            if shards:
                splits[split].setdefault(unit.source, []).extend(shards)
    return Manifest(
        folder=folder,
        name=corpus.name,
        inputs=inputs,
        tokenizer={
            "file": "tokenizer.json",
            "sha256": tokenizer_fingerprint(folder / "tokenizer.json"),
            "vocab_size": vocab_size,
            **ids,
        },
        dtype="uint16" if vocab_size < 65500 else "int32",
        splits=splits,
        sources=counts,
    )


def _check_splits(
    corpus: CorpusConfig,
    units: list[Unit],
    chosen: list[Chosen],
    counts: dict[str, dict[str, int]],
    console: Console,
) -> None:
    """Raises InputError for a source with nothing to train on; says which has nothing held out."""
    for source, count in counts.items():
        takes = [take for unit, take in zip(units, chosen, strict=True) if unit.source == source]
        if not count["documents"]:
            raise InputError(
                f"corpus.sources.{source} has no document left after its rules: {count}."
            )
        if not any(take.train for take in takes):
            raise InputError(
                f"corpus.sources.{source} has {count['documents']} documents and all of them fell "
                "to the held-out split: give it more files, or change corpus.seed or lower "
                "corpus.held_out_fraction."
            )
        if not any(take.held_out for take in takes):
            console.print(
                f"source '{source}' has no held-out document and will not be validated on: give "
                "it more files or raise corpus.held_out_fraction.",
                style="yellow",
                soft_wrap=True,
            )


def make_tokenizer(
    config: TokenizerConfig,
    corpus: CorpusConfig,
    units: list[Unit],
    chosen: list[Chosen],
    out: Path,
) -> None:
    """Writes tokenizer.json: the one at `config.path` as it is, or one trained on the training
    split, every source in the share that it has of the text."""
    if config.path:
        load_tokenizer(Path(config.path))
        shutil.copyfile(config.path, out)
        return
    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    train_tokenizer(_sample(config.train_bytes, corpus, units, chosen), config).save(str(out))
    os.environ["TOKENIZERS_PARALLELISM"] = "false"


def _sample(
    most_bytes: int, corpus: CorpusConfig, units: list[Unit], chosen: list[Chosen]
) -> Iterator[str]:
    """Training documents in the order of the units, so many of each unit that all together are
    about `most_bytes`."""
    for unit, take in zip(units, chosen, strict=True):
        left = max(1, most_bytes // len(units))
        train = set(take.train)
        for number, (_, _, text) in enumerate(read_unit(unit, corpus.sources[unit.source])):
            if left <= 0:
                break
            if number in train and text is not None:
                left -= len(text)
                yield text


def fingerprint_inputs(config: TokenizeConfig, units: list[Unit]) -> str:
    """sha256 of what decides the output: settings, and name, size and time of every file. The
    text itself is not read again."""
    what = {
        "format": FORMAT,
        "corpus": asdict(config.corpus),
        "tokenizer": asdict(config.tokenizer),
        "files": [
            (unit.source, file.name, file.bytes, file.mtime_ns)
            for unit in units
            for file in unit.files
        ],
    }
    if config.tokenizer.path:
        if not Path(config.tokenizer.path).is_file():
            raise InputError(f"tokenizer.path={config.tokenizer.path} does not exist.")
        what["tokenizer_sha256"] = tokenizer_fingerprint(Path(config.tokenizer.path))
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()


def _in_order(
    jobs: dict[Future[Any], Unit],
    progress: Progress,
    task: Any,
    tokens_of: Callable[[Any], int] = lambda result: 0,
) -> list[Any]:
    """Results of the jobs in the order in which they were given, with the bar moving as they
    end; the first that fails ends all. tokens_of: tokens that a job's result says were written."""
    started = time.monotonic()
    done_bytes = tokens = 0
    for job in as_completed(jobs):
        if job.exception() is not None:
            for other in jobs:
                other.cancel()
            job.result()
        done_bytes += sum(file.bytes for file in jobs[job].files)
        tokens += tokens_of(job.result())
        seconds = time.monotonic() - started
        said = f"{done_bytes / 1e6 / seconds:.1f} MB/s"
        if tokens:
            said += f"  {tokens / seconds:,.0f} tokens/s"
        progress.update(task, completed=done_bytes, said=said)
    return [job.result() for job in jobs]


def _tokens_written(entries: dict[str, list[dict[str, Any]]]) -> int:
    return sum(entry["tokens"] for shards in entries.values() for entry in shards)


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description:<9}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        TextColumn("{task.fields[said]}"),
        TimeElapsedColumn(),
        console=console,
    )


def print_summary(manifest: Manifest, console: Console) -> None:
    """A row a source and split."""
    table = Table(title=f"corpus {manifest.name}", title_justify="left")
    for column in ("source", "split", "documents", "tokens", "MB", "bytes/token"):
        table.add_column(column, justify="left" if column in ("source", "split") else "right")
    for split, sources in manifest.splits.items():
        for source, shards in sources.items():
            sums = {key: sum(s[key] for s in shards) for key in ("documents", "tokens", "bytes")}
            table.add_row(
                source,
                split,
                f"{sums['documents']:,}",
                f"{sums['tokens']:,}",
                f"{sums['bytes'] / 1e6:.2f}",
                f"{sums['bytes'] / sums['tokens']:.2f}",
            )
    console.print(table)
    for source, count in manifest.sources.items():
        left_out = {
            k: v for k, v in count.items() if k not in ("files", "documents", "bytes") and v
        }
        if left_out:
            said = ", ".join(f"{number} {reason}" for reason, number in left_out.items())
            console.print(f"left out of {source}: {said}", highlight=False, soft_wrap=True)
