"""The command `python -m pretrain teach`, which caches a teacher's answers to a run's samples.

The work is divided into units (`units`). Each is written to a file in `<out>.partial` under a
temporary name and renamed, and counts once its marker exists, so a killed process loses only the
unit that it computed. The bytes of a unit do not depend on the process. The process that finishes
the last unit writes the manifest and renames the folder to `<out>`.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console

from conf.errors import InputError
from conf.files import restore
from conf.output_kinds import TEACHER_CACHE
from conf.outputs import Output
from conf.text import format_bytes, format_duration
from data_pipeline.files import write_json
from data_pipeline.store.checksums import read_with_checksums, sha256_of_file
from data_pipeline.store.storage import is_remote
from data_pipeline.tokenizing.progress import OUTLINE, write_task_count
from data_pipeline.tokenizing.work import JobShard, WorkFolder
from pretrain.teacher_cache.config import TeachConfig
from pretrain.teacher_cache.manifest import FILE, REPAIR, CacheManifest, load_cache
from pretrain.teacher_cache.network import Network, process_alone
from pretrain.teacher_cache.teaching import Teaching, answered, write_unit

PHASE = "teach"


def teach(config: TeachConfig) -> None:
    """Writes the cache `config.out`, and resumes unfinished work if there is any.

    Does nothing if `config.out` already exists and was made from the same inputs.
    """
    console = Console(highlight=False, soft_wrap=True)
    if config.do == "verify":
        verify(config.out, console)
        return
    for key in ("model", "data"):
        if getattr(config, key) is None:
            raise InputError(f"{key} has no value. Give {key}=...")
    if is_remote(config.out):
        raise InputError(f"out={config.out}: the output cannot be remote. Give a local folder.")
    output = Output(config.out, TEACHER_CACHE, config.overwrite, [config.model, config.data])
    output.check_foreign()
    teaching = Teaching.of(config)
    job_shard = share_of(config)
    network = Network(config, teaching)
    if config.do == "plan":
        console.print(describe(teaching, teaching.manifest(network.identity, config.precision)))
        return
    with process_alone(config.device) as device:
        cache = teaching.manifest(network.identity, network.precision(device))
        if not job_shard.rank:
            console.print(describe(teaching, cache))
        folder = WorkFolder(output.path, job_shard, "cache")
        check_work(folder, cache)
        if not folder.path.exists() and _up_to_date(output, cache, console):
            return
        with folder.locked(cache.inputs, cache.inputs):
            restore(folder.content, output.path)
            if folder.is_renamed():
                output = replace(output, overwrite=False)
            if not _up_to_date(output, cache, console):
                work(teaching, cache, folder, network, device, console)
            finish(teaching, cache, folder, output, console)


def check_work(folder: WorkFolder, cache: CacheManifest) -> None:
    """Raises InputError if there is unfinished work for another cache."""
    folder.check()
    if folder.inputs() not in (None, cache.inputs):
        raise InputError(
            f"out={folder.out}: {folder.path} is unfinished work with another teacher or other "
            "settings. Restore them, remove that folder, or choose another out."
        )


def share_of(config: TeachConfig) -> JobShard:
    """Returns the share of this process, given by the keys, torchrun or SLURM.

    Each rank of torchrun has its own share of the share of its job in a SLURM array.
    """
    env = os.environ
    if config.rank is not None or config.world is not None or "RANK" not in env:
        return JobShard.resolve(config.rank, config.world)
    rank, world = int(env["RANK"]), int(env["WORLD_SIZE"])
    jobs = int(env.get("SLURM_ARRAY_TASK_COUNT", 1))
    job = int(env.get("SLURM_ARRAY_TASK_ID", 0)) - int(env.get("SLURM_ARRAY_TASK_MIN", 0))
    return JobShard.resolve(job * world + rank, jobs * world)


def describe(teaching: Teaching, cache: CacheManifest) -> str:
    """Returns the size of a cache in words."""
    first, last = cache.steps
    return (
        f"{cache.tokens:,} tokens of steps {first} to {last}, top_k={cache.top_k}: "
        f"{cache.bytes_per_token:.1f} bytes per token, {format_bytes(cache.bytes)} in "
        f"{len(teaching.units):,} files"
    )


def work(
    teaching: Teaching,
    cache: CacheManifest,
    folder: WorkFolder,
    network: Network,
    device: torch.device,
    console: Console,
) -> None:
    """Computes the units of this process that are not done."""
    units, share = teaching.units, folder.job_shard
    write_json(folder.path / OUTLINE, {"phases": [PHASE], "unit_bytes": []})
    write_task_count(folder.path, PHASE, len(units))
    mine = share.select(folder.remaining(PHASE, len(units)))
    if not mine:
        return
    if len(mine) < len(share.select(range(len(units)))):
        console.print(f"resuming from {folder.path}")
    answer = network.load(device)
    reader, started, tokens = teaching.reader(), time.monotonic(), 0
    for count, number in enumerate(mine, 1):
        if folder.inputs() is None:  # others have finished the cache, and removed the folder
            return
        unit = units[number]
        parts = answered(teaching, cache, reader, unit, answer)
        write_json(folder.marker(PHASE, number), write_unit(folder.content, unit, parts))
        tokens += unit.samples * teaching.run.plan.stages[unit.stage].seq_len
        seconds = time.monotonic() - started
        left = format_duration(seconds / count * (len(mine) - count))
        console.print(f"unit {count} of {len(mine)}: {tokens / seconds:,.0f} tokens/s, {left} left")


def finish(
    teaching: Teaching, cache: CacheManifest, folder: WorkFolder, output: Output, console: Console
) -> None:
    """Writes the manifest and renames the folder, if all units of all processes are done."""
    with _alone(folder):
        is_done = folder.inputs() is None or folder.is_renamed()  # by another process
        if is_done or (not output.overwrite and _is_current(output.path, cache)):
            folder.remove()
            return
        missing = folder.remaining(PHASE, len(teaching.units))
        if missing:
            console.print(
                f"the units of this process are done; {len(missing)} of {len(teaching.units)} are "
                "left to other processes"
            )
            return
        files = [folder.result(PHASE, number) for number in range(len(teaching.units))]
        whole = replace(cache, files=files)
        (folder.content / FILE).write_text(whole.to_json())
        expected = {FILE, *(name for name, _ in whole.sizes())}
        for path in list(folder.content.rglob("*")):  # processes that were killed left files
            if path.is_file() and str(path.relative_to(folder.content)) not in expected:
                path.unlink()
        folder.mark_complete()
        output.put(folder.content)
        folder.remove()
    console.print(f"made {output.given}")


@contextmanager
def _alone(folder: WorkFolder) -> Iterator[None]:
    """Waits until no other process is finishing the same output."""
    folder.path.mkdir(parents=True, exist_ok=True)  # that process may have removed it
    with (folder.path / "lock.finish").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _is_current(path: Path, cache: CacheManifest) -> bool:
    """Returns True if a path holds a cache that was made from the same inputs."""
    return (path / FILE).is_file() and load_cache(path, "out").inputs == cache.inputs


def _up_to_date(output: Output, cache: CacheManifest, console: Console) -> bool:
    if output.overwrite or not output.path.is_dir():
        return False
    if not _is_current(output.path, cache):
        output.check("a cache of another teacher or other settings")
        return False
    console.print(f"{output.given} is up to date (same teacher, data and settings).")
    return True


def verify(out: str, console: Console) -> None:
    """Compares every byte of a cache with its manifest and checksums.

    Raises InputError that names the damaged files.
    """
    cache, folder, damaged = load_cache(out, "out"), Path(out), []
    for entry in cache.files:
        path = folder / f"{entry['file']}.bin"
        sums = path.with_suffix(".sums").read_bytes()
        found = b"".join(part.tobytes() for _, part in read_with_checksums(path))
        if sha256_of_file(path) != entry["sha256"]:
            damaged.append(path)
        elif found != sums:
            damaged.append(path.with_suffix(".sums"))
    if damaged:
        names = ", ".join(map(str, damaged))
        raise InputError(f"{names}: the content differs from the manifest. {REPAIR}")
    console.print(f"{out}: {len(cache.files):,} files with {cache.bytes:,} bytes are as written")
