"""`python -m data_pipeline verify`: is a folder of shards what its manifest says?

Every problem is listed with its file and place, so that one pass tells what has to be restored.
"""

from __future__ import annotations

import hashlib
import math
import multiprocessing
import os
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import MISSING

from conf.errors import InputError
from data_pipeline.store.manifest import Manifest, load_manifest
from data_pipeline.store.shard_scan import (
    BadIndex,
    Flaw,
    Places,
    blocks_that_differ,
    index_flaws,
    read_index,
    scan_tokens,
    sha256_of_file,
)
from data_pipeline.store.storage import is_remote
from data_pipeline.store.sums import BLOCK_BYTES, SUM

TABLE = ".docs.parquet"
ENDINGS = (".bin", ".idx", ".sums", ".mask", TABLE)
OPTIONAL = {".sums": "sums", ".mask": "masked"}
"""Files that a shard has where its entry says so under this key."""
ENTRY = ("file", "documents", "tokens", "bytes", "sha256", "idx_sha256")
PARALLEL_BYTES = 1 << 27
"""Less than this is read before other processes have started."""
MEGATRON_SHARDS = 64
"""Opened by Megatron-core's reader."""


@dataclass
class VerifyConfig:
    """data: a folder of shards with a manifest.

    sample: share of the shards that are read whole; sizes and unknown files are always checked
    for all. seed: of the choice of the sample. workers: processes, 0 for as many as there
    are cores. max_listed: problems of one kind in one file; of more only the number is said.
    megatron: whether Megatron-core's own reader opens shards that were read, MEGATRON_SHARDS of
    them at most.
    """

    data: str = MISSING
    sample: float = 1.0
    seed: int = 0
    workers: int = 0
    max_listed: int = 20
    megatron: bool = True

    def __post_init__(self) -> None:
        if not 0 < self.sample <= 1:
            raise InputError(f"sample={self.sample:g}, expected more than 0 and at most 1.")
        if self.max_listed < 1:
            raise InputError(f"max_listed={self.max_listed}, expected at least 1.")


@dataclass(frozen=True)
class Problem:
    """file: its path in the folder; place: offset in it, or ''; text: what is wrong there."""

    file: str
    place: str
    text: str

    def __str__(self) -> str:
        return f"{self.file}{f', {self.place}' if self.place else ''}: {self.text}"


@dataclass(frozen=True)
class Expected:
    """What the manifest says about all shards."""

    folder: Path
    dtype: str
    vocab_size: int
    eos_id: int
    ends_in_eos: bool
    is_packed: bool
    has_tables: bool
    max_listed: int


@dataclass
class Verified:
    """shards: all of them; read: those that were read whole, `bytes` in all."""

    shards: int
    read: int = 0
    bytes: int = 0
    seconds: float = 0.0
    problems: list[Problem] = field(default_factory=list)


def verify(config: VerifyConfig) -> None:
    """Prints every problem; raises InputError where there is one."""
    from rich.console import Console

    console = Console(soft_wrap=True, highlight=False, markup=False)
    if is_remote(config.data):
        raise InputError(f"data={config.data} is not on this machine: verify the local folder.")
    manifest = load_manifest(config.data)
    found = check_folder(manifest, config, console)
    if config.megatron and not found.problems:
        found.problems += _read_by_megatron(manifest, config)
    for problem in found.problems:
        console.print(str(problem))
    said = (
        f"{manifest.folder}: read {found.read:,} of {found.shards:,} shards, "
        f"{found.bytes / 1e6:,.1f} MB in {found.seconds:.1f} s "
        f"({found.bytes / 1e6 / max(found.seconds, 1e-9):,.0f} MB/s)"
    )
    if found.problems:
        files = len({problem.file for problem in found.problems})
        raise InputError(
            f"{said}; {len(found.problems):,} problems in {files:,} files, listed above: restore "
            "these files, or make the folder again."
        )
    megatron = ", and Megatron-core reads the same" if config.megatron else ""
    console.print(f"{said}; all is as the manifest says{megatron}")


def check_folder(manifest: Manifest, config: VerifyConfig, console: Any = None) -> Verified:
    """Checks a folder; problems come in the order of the manifest."""
    started = time.monotonic()
    expected = Expected(
        manifest.folder,
        manifest.dtype,
        manifest.vocab_size,
        int(manifest.tokenizer["eos_id"]),
        manifest.ends_in_eos,
        bool(manifest.packed),
        manifest.origin == "tokenize",
        config.max_listed,
    )
    entries = [
        entry for split in manifest.splits.values() for shards in split.values() for entry in shards
    ]
    result = Verified(len(entries), problems=[*_about_folder(manifest, entries)])
    whole = [entry for entry in entries if all(key in entry for key in ENTRY)]
    chosen = sample(whole, config.sample, config.seed)
    names = {entry["file"] for entry in chosen}
    by_file: dict[str, list[Problem]] = {}
    for entry in whole:
        by_file[entry["file"]] = [*check_sizes(entry, expected)]
    sizes = {entry["file"]: _size(expected.folder / f"{entry['file']}.bin") for entry in chosen}
    for file, problems in _read_all(chosen, sizes, expected, config.workers, console):
        by_file[file] += problems
    result.problems += [problem for found in by_file.values() for problem in found]
    result.read = len(names)
    result.bytes = sum(sizes.values())
    result.seconds = time.monotonic() - started
    return result


def _read_by_megatron(manifest: Manifest, config: VerifyConfig) -> Iterator[Problem]:
    from data_pipeline.store.megatron_reader import differences

    shards = [e for split in manifest.splits.values() for files in split.values() for e in files]
    chosen = sample(shards, min(config.sample, MEGATRON_SHARDS / len(shards)), config.seed)
    files = [entry["file"] for entry in chosen]
    for file, text in differences(manifest.folder, files, manifest.dtype):
        yield Problem(file, "", text)


def sample(entries: list[dict[str, Any]], share: float, seed: int) -> list[dict[str, Any]]:
    """That share of the shards, rounded up, chosen by a hash of their names."""
    count = math.ceil(share * len(entries))

    def key(entry: dict[str, Any]) -> bytes:
        return hashlib.sha256(f"{seed}:verify:{entry['file']}".encode()).digest()

    kept = {entry["file"] for entry in sorted(entries, key=key)[:count]}
    return [entry for entry in entries if entry["file"] in kept]


def _read_all(
    entries: list[dict[str, Any]],
    sizes: dict[str, int],
    expected: Expected,
    workers: int,
    console: Any,
) -> Iterator[tuple[str, list[Problem]]]:
    """What is wrong inside the shards, as they are done; large ones are begun first."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    total = sum(sizes.values())
    entries = sorted(entries, key=lambda entry: -sizes[entry["file"]])
    workers = min(workers or len(os.sched_getaffinity(0)), len(entries))
    columns = (
        *(TextColumn("verifying"), BarColumn(), TextColumn("{task.percentage:>3.0f}%")),
        *(TextColumn("{task.fields[said]}"), TimeElapsedColumn()),
    )
    started = time.monotonic()
    quiet = console is None or not console.is_terminal
    with Progress(*columns, console=console, disable=quiet, transient=True) as progress:
        task = progress.add_task("", total=total, said="")
        done = 0
        for file, problems in _results(entries, expected, workers if total > PARALLEL_BYTES else 1):
            done += sizes[file]
            rate = done / 1e6 / max(time.monotonic() - started, 1e-9)
            progress.update(task, completed=done, said=f"{rate:,.0f} MB/s")
            yield file, problems


def _results(
    entries: list[dict[str, Any]], expected: Expected, workers: int
) -> Iterator[tuple[str, list[Problem]]]:
    if workers <= 1:
        for entry in entries:
            yield entry["file"], check_content(entry, expected)
        return
    context = multiprocessing.get_context("forkserver")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        jobs = {pool.submit(check_content, entry, expected): entry["file"] for entry in entries}
        for job in as_completed(jobs):
            yield jobs[job], job.result()


def _about_folder(manifest: Manifest, entries: list[dict[str, Any]]) -> Iterator[Problem]:
    """Tokenizer, table of bytes, entries of the manifest, and files that it does not know."""
    try:
        manifest.check_tokenizer()
    except InputError as error:
        yield Problem(manifest.tokenizer["file"], "", str(error))
    try:
        size = len(manifest.token_bytes())
        if size != manifest.vocab_size:
            text = f"has {size} entries, the vocabulary {manifest.vocab_size}"
            yield Problem("token_bytes.npy", "", text)
    except (InputError, ValueError) as error:
        yield Problem("token_bytes.npy", "", str(error))
    known = set()
    for entry in entries:
        file = entry.get("file", "?")
        lacking = [key for key in ENTRY if key not in entry]
        if lacking:
            yield Problem("manifest.json", f"shard {file}", f"lacks {', '.join(lacking)}")
        known |= {f"{file}{e}" for e in ENDINGS if entry.get(OPTIONAL.get(e, "file"))}
    for file, count in Counter(entry.get("file") for entry in entries).items():
        if count > 1:
            yield Problem("manifest.json", f"shard {file}", f"is listed {count} times")
    shard_folders = {name.split("/")[0] for name in known} | set(manifest.splits)
    for name in sorted(_files(manifest.folder) - known):
        if name.split("/")[-1].startswith("."):
            continue
        if name.split("/")[0] in shard_folders or name.endswith(ENDINGS):
            yield Problem(name, "", "the manifest does not know this file")


def _files(folder: Path) -> set[str]:
    """Paths of all files inside, with slashes."""
    found = set()
    for where, _, files in os.walk(folder):
        inside = Path(where).relative_to(folder).as_posix()
        found |= {name if inside == "." else f"{inside}/{name}" for name in files}
    return found


def check_sizes(entry: dict[str, Any], expected: Expected) -> Iterator[Problem]:
    """Files that are missing or not as long as the manifest says."""
    name, tokens = entry["file"], entry["tokens"]
    width = np.dtype(expected.dtype).itemsize
    blocks = math.ceil(tokens * width / BLOCK_BYTES)
    sizes: dict[str, int | None] = {".bin": tokens * width, ".idx": None}
    if entry.get("sums"):
        sizes[".sums"] = blocks * SUM.itemsize
    if entry.get("masked"):
        sizes[".mask"] = tokens
    for ending, wanted in sizes.items():
        path = expected.folder / f"{name}{ending}"
        if not path.is_file():
            yield Problem(f"{name}{ending}", "", "is missing")
        elif wanted is not None and (found := path.stat().st_size) != wanted:
            yield Problem(
                f"{name}{ending}",
                f"byte {min(found, wanted)}",
                f"has {found} bytes, the manifest says {wanted} for {tokens} tokens",
            )
    if expected.has_tables and not (expected.folder / f"{name}{TABLE}").is_file():
        yield Problem(f"{name}{TABLE}", "", "is missing")


def check_table(entry: dict[str, Any], expected: Expected) -> Iterator[Problem]:
    """Whether the table of documents has a row for each."""
    import pyarrow.parquet as pq

    name, documents = f"{entry['file']}{TABLE}", entry["documents"]
    if not (expected.folder / name).is_file():
        return
    try:
        with pq.ParquetFile(expected.folder / name) as file:
            columns, rows = file.schema_arrow.names, file.metadata.num_rows
    except Exception as error:  # whatever pyarrow says about a damaged file
        yield Problem(name, "", f"cannot be read ({error})")
        return
    if not {"file", "position"} <= set(columns):
        yield Problem(name, "", f"has columns {', '.join(columns)}, expected file and position")
    if rows != documents:
        text = f"has {rows} rows, the manifest says {documents} documents"
        yield Problem(name, f"row {min(rows, documents)}", text)


def check_content(entry: dict[str, Any], expected: Expected) -> list[Problem]:
    """Reads a shard whole; what `check_sizes` says is not said again."""
    name, folder = entry["file"], expected.folder
    bin_path, idx_path = folder / f"{name}.bin", folder / f"{name}.idx"
    problems = [*check_table(entry, expected)]

    def say(ending: str, flaws: Iterable[Flaw]) -> None:
        listed = 0
        for listed, flaw in enumerate(flaws, 1):
            if listed <= expected.max_listed:
                problems.append(Problem(f"{name}{ending}", flaw.place, flaw.text))
        if listed > expected.max_listed:
            more = f"{listed - expected.max_listed} more problems of this kind"
            problems.append(Problem(f"{name}{ending}", "", more))

    lengths = np.empty(0, np.int64)
    dtype = np.dtype(expected.dtype)
    if idx_path.is_file():
        digest = sha256_of_file(idx_path)
        if digest != entry["idx_sha256"]:
            say(".idx", [_other_hash(digest, entry["idx_sha256"])])
        try:
            index = read_index(idx_path)
        except BadIndex as error:
            say(".idx", [error.flaw])
        else:
            say(".idx", index_flaws(index))
            if index.dtype != dtype:
                text = f"holds {index.dtype}, the manifest says {expected.dtype}"
                say(".idx", [Flaw("byte 17", text)])
            for what, count in (("documents", index.documents), ("tokens", index.tokens)):
                if count != entry[what]:
                    text = f"has {count} {what}, the manifest says {entry[what]}"
                    say(".idx", [Flaw("", text)])
            if (index.lengths >= 0).all():
                lengths = index.document_lengths()
    if bin_path.is_file():
        scan = scan_tokens(
            *(bin_path, dtype, expected.vocab_size, expected.eos_id, lengths),
            limit=expected.max_listed,
        )
        if scan.sha256 != entry["sha256"]:
            say(".bin", [_other_hash(scan.sha256, entry["sha256"])])
        sums_path = folder / f"{name}.sums"
        if entry.get("sums") and sums_path.is_file():
            sums = np.fromfile(sums_path, SUM)
            flaws = blocks_that_differ(scan.sums, sums)
            if scan.sha256 == entry["sha256"]:
                flaws = [
                    Flaw(flaw.place, "its checksums are not those of .bin, which is whole")
                    for flaw in flaws
                ]
            say(".bin" if scan.sha256 != entry["sha256"] else ".sums", flaws)
        vocabulary = f"beyond the vocabulary of {expected.vocab_size}"
        _say_places(problems, name, scan.beyond, f"holds the id {{}}, {vocabulary}")
        if expected.ends_in_eos and len(lengths):
            eos = f"EOS ({expected.eos_id})"
            if expected.is_packed:  # pieces of cut documents and padding end as they may
                scan.no_eos = Places(0)
            _say_places(problems, name, scan.no_eos, f"a document ends in {{}}, expected {eos}")
            _say_places(problems, name, scan.eos_inside, f"there is {eos} inside a document")
    mask_path = folder / f"{name}.mask"
    if entry.get("masked") and mask_path.is_file() and mask_path.stat().st_size:
        wrong = np.flatnonzero(np.memmap(mask_path, np.uint8, mode="r") > 1)
        say(".mask", (Flaw(f"token {place}", "is neither 0 nor 1") for place in wrong))
    return problems


def _say_places(problems: list[Problem], name: str, places: Places, text: str) -> None:
    problems += [
        Problem(f"{name}.bin", f"token {offset}", text.format(found))
        for offset, found in places.first
    ]
    if places.count > len(places.first):
        more = f"{places.count - len(places.first)} more problems of this kind"
        problems.append(Problem(f"{name}.bin", "", more))


def _other_hash(found: str, expected: str) -> Flaw:
    return Flaw("", f"has the sha256 {found[:16]}, the manifest says {str(expected)[:16]}")


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0
