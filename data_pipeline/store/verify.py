"""`python -m data_pipeline verify`: compares a folder of shards with its manifest.

Each problem is listed with its file and position, so one run shows everything that needs repair.
"""

from __future__ import annotations

import hashlib
import math
import multiprocessing
import os
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from omegaconf import MISSING

from conf.errors import InputError
from data_pipeline.store.checksums import sha256_of_file
from data_pipeline.store.manifest import ADDITIONS, INDEX, Manifest, load_manifest
from data_pipeline.store.shard_checks import TABLE, Problem, ShardCheck, missing_or_wrong_size
from data_pipeline.store.storage import is_remote

SUFFIXES = (".bin", ".idx", ".sums", ".mask", TABLE)
OPTIONAL = {".sums": "sums", ".mask": "masked"}
"""Optional files of a shard, each with the key of the shard's entry that is true if it exists."""
REQUIRED_KEYS = ("file", "documents", "tokens", "bytes", "sha256", "idx_sha256")
PARALLEL_BYTES = 1 << 27
"""Total size of the shards up to which one process is used, since starting others takes longer."""
MAX_MEGATRON_SHARDS = 64
"""Maximum number of shards that are opened with Megatron-core's reader."""


@dataclass
class VerifyConfig:
    """Configuration of `verify`.

    data: Folder of shards with a manifest.
    sample: Fraction of the shards to read completely. File sizes and unknown files are always
        checked for all shards.
    seed: Seed that selects the sample.
    workers: Number of processes; 0 uses one per core.
    max_listed: Number of problems of one kind to list per file; the others are only counted.
    megatron: Also compares up to 64 of the shards with what Megatron-core's own reader reads.
    """

    data: str = MISSING
    sample: float = 1.0
    seed: int = 0
    workers: int = 0
    max_listed: int = 20
    megatron: bool = True

    def __post_init__(self) -> None:
        if not 0 < self.sample <= 1:
            raise InputError(f"sample={self.sample:g}: expected more than 0 and at most 1.")
        if self.max_listed < 1:
            raise InputError(f"max_listed={self.max_listed}: expected 1 or more.")


@dataclass
class VerifyResult:
    """Result of comparing a folder with its manifest.

    Attributes:
        shards: Number of shards in the manifest.
        read_shards: Number of shards that were read completely.
        read_bytes: Total size in bytes of the `.bin` files of these shards.
        seconds: Duration of the check.
        problems: All differences from the manifest.
    """

    shards: int
    read_shards: int = 0
    read_bytes: int = 0
    seconds: float = 0.0
    problems: list[Problem] = field(default_factory=list)


def verify(config: VerifyConfig) -> None:
    """Verifies a folder and prints every problem. Raises InputError if there are any."""
    from rich.console import Console

    console = Console(soft_wrap=True, highlight=False, markup=False)
    if is_remote(config.data):
        raise InputError(
            f"data={config.data}: remote folders cannot be verified. Copy the folder to this "
            "machine, and give its path."
        )
    manifest = load_manifest(config.data)
    result = check_folder(manifest, config, console)
    if config.megatron and not result.problems:
        result.problems += _compare_with_megatron(manifest, config)
    for problem in result.problems:
        console.print(str(problem))
    summary = (
        f"{manifest.folder}: read {result.read_shards:,} of {result.shards:,} shards, "
        f"{result.read_bytes / 1e6:,.1f} MB in {result.seconds:.1f} s "
        f"({result.read_bytes / 1e6 / max(result.seconds, 1e-9):,.0f} MB/s)"
    )
    if result.problems:
        files = len({problem.file for problem in result.problems})
        raise InputError(
            f"{summary}; found {len(result.problems):,} problems in {files:,} files, listed above. "
            "Restore these files, or tokenize the corpus again."
        )
    megatron = ", and Megatron-core reads the same tokens" if config.megatron else ""
    console.print(f"{summary}; everything matches the manifest{megatron}")


def check_folder(manifest: Manifest, config: VerifyConfig, console: Any = None) -> VerifyResult:
    """Checks a folder and returns the result, with problems in the order of the manifest."""
    started = time.monotonic()
    entries = list(_entries(manifest))
    result = VerifyResult(len(entries), problems=[*_check_manifest(manifest, entries)])
    result.problems += _check_index(manifest, read=config.sample == 1)
    complete = [entry for entry in entries if all(key in entry for key in REQUIRED_KEYS)]
    chosen = sample(complete, config.sample, config.seed)
    by_file: dict[str, list[Problem]] = {}
    for entry in complete:
        by_file[entry["file"]] = [*missing_or_wrong_size(manifest, entry)]
    sizes = {entry["file"]: _size(manifest.folder / f"{entry['file']}.bin") for entry in chosen}
    for file, problems in _check_shards(chosen, sizes, manifest, config, console):
        by_file[file] += problems
    result.problems += [problem for found in by_file.values() for problem in found]
    result.read_shards = len(sizes)
    result.read_bytes = sum(sizes.values())
    result.seconds = time.monotonic() - started
    return result


def _entries(manifest: Manifest) -> Iterator[dict[str, Any]]:
    for sources in manifest.splits.values():
        for shards in sources.values():
            yield from shards


def _compare_with_megatron(manifest: Manifest, config: VerifyConfig) -> Iterator[Problem]:
    from data_pipeline.store.megatron_reader import differences

    shards = list(_entries(manifest))
    chosen = sample(shards, min(config.sample, MAX_MEGATRON_SHARDS / len(shards)), config.seed)
    files = [entry["file"] for entry in chosen]
    for file, text in differences(manifest.folder, files, manifest.dtype):
        yield Problem(file, "", text)


def sample(entries: list[dict[str, Any]], fraction: float, seed: int) -> list[dict[str, Any]]:
    """Returns a fraction of the shards, rounded up, selected by a hash of their names."""
    count = math.ceil(fraction * len(entries))

    def key(entry: dict[str, Any]) -> bytes:
        return hashlib.sha256(f"{seed}:verify:{entry['file']}".encode()).digest()

    kept = {entry["file"] for entry in sorted(entries, key=key)[:count]}
    return [entry for entry in entries if entry["file"] in kept]


def _check_shards(
    entries: list[dict[str, Any]],
    sizes: dict[str, int],
    manifest: Manifest,
    config: VerifyConfig,
    console: Any,
) -> Iterator[tuple[str, list[Problem]]]:
    """Yields each shard's file with its problems as soon as it is checked, and shows progress."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    total = sum(sizes.values())
    entries = sorted(entries, key=lambda entry: -sizes[entry["file"]])
    workers = min(config.workers or len(os.sched_getaffinity(0)), len(entries))
    if total <= PARALLEL_BYTES:
        workers = 1
    columns = (
        *(TextColumn("verifying"), BarColumn(), TextColumn("{task.percentage:>3.0f}%")),
        *(TextColumn("{task.fields[rate]}"), TimeElapsedColumn()),
    )
    started = time.monotonic()
    quiet = console is None or not console.is_terminal
    with Progress(*columns, console=console, disable=quiet, transient=True) as progress:
        task = progress.add_task("", total=total, rate="")
        done = 0
        for file, problems in _run_checks(entries, manifest, config.max_listed, workers):
            done += sizes[file]
            rate = done / 1e6 / max(time.monotonic() - started, 1e-9)
            progress.update(task, completed=done, rate=f"{rate:,.0f} MB/s")
            yield file, problems


def _run_checks(
    entries: list[dict[str, Any]], manifest: Manifest, max_listed: int, workers: int
) -> Iterator[tuple[str, list[Problem]]]:
    if workers <= 1:
        for entry in entries:
            yield entry["file"], ShardCheck(manifest, entry, max_listed).run()
        return
    context = multiprocessing.get_context("forkserver")
    # The worker processes do not need the list of all shards, which may be long.
    without_shards = replace(manifest, splits={})
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        jobs = {
            pool.submit(ShardCheck(without_shards, entry, max_listed).run): entry["file"]
            for entry in entries
        }
        for job in as_completed(jobs):
            yield jobs[job], job.result()


def _check_manifest(manifest: Manifest, entries: list[dict[str, Any]]) -> Iterator[Problem]:
    """Yields problems of the tokenizer, the byte table and the entries, and unlisted files."""
    try:
        manifest.check_tokenizer()
    except InputError as error:
        yield Problem(manifest.tokenizer["file"], "", str(error))
    try:
        size = len(manifest.token_bytes())
        if size != manifest.vocab_size:
            text = f"has {size} entries, but the vocabulary has {manifest.vocab_size} ids"
            yield Problem("token_bytes.npy", "", text)
    except (InputError, ValueError) as error:
        yield Problem("token_bytes.npy", "", str(error))
    known = set()
    for entry in entries:
        file = entry.get("file", "?")
        lacking = [key for key in REQUIRED_KEYS if key not in entry]
        if lacking:
            yield Problem("manifest.json", f"shard {file}", f"has no {', '.join(lacking)}")
        known |= {
            f"{file}{suffix}" for suffix in SUFFIXES if entry.get(OPTIONAL.get(suffix, "file"))
        }
    for file, count in Counter(entry.get("file") for entry in entries).items():
        if count > 1:
            yield Problem("manifest.json", f"shard {file}", f"is listed {count} times")
    folders = {name.rpartition("/")[0] for name in known} | set(manifest.splits)
    inside = tuple(f"{folder}/" for folder in folders if folder)
    # Killed between its last two steps, an addition is complete but not in the manifest yet.
    unfinished = f"{ADDITIONS}/{manifest.edition_count + 1:04}/"
    for name in sorted(_files(manifest.folder) - known):
        if name.split("/")[-1].startswith(".") or name.startswith(unfinished):
            continue
        if name.startswith(inside) or name.endswith(SUFFIXES):
            yield Problem(name, "", "is not in the manifest")


def _check_index(manifest: Manifest, read: bool) -> Iterator[Problem]:
    """Yields problems of the index, whose files are only read if `read` is set."""
    for number in range(1, manifest.edition_count + 1):
        folder = manifest.edition_folder(number) / INDEX
        index = manifest.read_index(number) or {"units": []}
        for unit, row in enumerate(index["units"]):
            for suffix, expected in row["sha256"].items():
                path = folder / f"{unit:06}{suffix}"
                name = path.relative_to(manifest.folder).as_posix()
                if not path.is_file():
                    yield Problem(name, "", "is missing")
                elif read and sha256_of_file(path) != expected:
                    yield Problem(name, "", "does not have the sha256 in index.json")


def _files(folder: Path) -> set[str]:
    """Returns the paths of all files in a folder, relative to it and with slashes."""
    found = set()
    for parent, _, files in os.walk(folder):
        inside = Path(parent).relative_to(folder).as_posix()
        found |= {name if inside == "." else f"{inside}/{name}" for name in files}
    return found


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0
