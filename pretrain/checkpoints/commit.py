"""The parts of a save that touch files; each runs in a process aside.

1. Every rank writes its shards into `step_N.tmp-<id>/`, 2. makes them durable and reads them back
from the disk. 3. All votes are in (see `saver`). 4. Rank 0 writes the manifest, 5. renames the
folder, 6. moves `latest` and prunes. 7. What a later start takes is what the manifest confirms.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint import FileSystemWriter
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import WriteItem

from pretrain.checkpoints import direct_io as direct
from pretrain.checkpoints import files
from pretrain.checkpoints.retention import Retention
from pretrain.checkpoints.staging import HURRY, Staged
from pretrain.checkpoints.writer_process import shared_memory, trainer_pid


class Resolved:
    """The one question that a storage writer asks of a planner."""

    def __init__(self, items: list[WriteItem], contents: list[Any]) -> None:
        self._contents = {item.index: data for item, data in zip(items, contents, strict=True)}

    def resolve_data(self, item: WriteItem) -> Any:
        """The value of an item."""
        return self._contents[item.index]


def write_shards(
    folder: Path, step: int, staged: Staged, share: float, seconds: float
) -> tuple[dict[str, Any], list[Any]]:
    """Writes what this rank staged, syncs it, and reads it back from the disk; returns the
    manifest's entries and DCP's results. Raises OSError where the disk has something else.

    share: of a core's time, for so many seconds and while the training does not wait for it.
    """
    memory = shared_memory()
    pace = direct.Pace(share, seconds, lambda: bool(memory[HURRY]))
    files.reach("staged", step, trainer_pid())
    folder.mkdir(parents=True, exist_ok=True)
    torch.serialization.set_crc32_options(False)  # the manifest has better hashes
    writer = FileSystemWriter(folder, thread_count=1, sync_files=False)
    writer.fs = disk = direct.DirectFiles(pace)
    planner: Any = Resolved(staged.plan.items, staged.values(memory))
    try:
        results = writer.write_data(staged.plan, planner).wait()
    except RuntimeError as error:  # torch's zip writer does not say why it could not write
        free = shutil.disk_usage(folder).free
        if free < staged.bytes:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder)) from error
        raise
    files.reach("written", step, trainer_pid())
    entries = {}
    for name, digest in sorted(disk.digests.items()):
        if direct.digest(folder / name, pace) != digest:
            raise OSError(f"{folder / name} does not read back as it was written.")
        entries[name] = {"bytes": (folder / name).stat().st_size, "xxh3_128": digest}
    files.reach("hashed", step, trainer_pid())
    return entries, results


def commit(
    temporary: Path,
    final: Path,
    metadata: Metadata,
    votes: list[tuple[dict[str, Any], list[Any]]],
    about: Mapping[str, Any],
    keep: Retention,
) -> list[str]:
    """Makes a checkpoint of the shards of all ranks; returns the names of those that went."""
    folder, step = final.parent, about["step"]
    files.reach("agreed", step, trainer_pid())
    for log in folder.parent.glob("*.jsonl"):  # a power cut takes no step that is in the weights
        with contextlib.suppress(OSError):
            files.sync(log)
    FileSystemWriter(temporary).finish(metadata, [results for _, results in votes])
    entries = {name: entry for part, _ in votes for name, entry in part.items()}
    entries[".metadata"] = files.entry(temporary / ".metadata")
    files.write_manifest(temporary, {**about, "torch": torch.__version__, "files": entries})
    files.reach("manifest", step, trainer_pid())
    problem = files.verdict(temporary)  # another rank may have lost what it said was there
    if problem is not None:
        raise OSError(problem)
    if final.exists():
        files.quarantine(final)
    os.rename(temporary, final)
    files.sync(folder)
    files.reach("renamed", step, trainer_pid())
    files.write_durably(folder / files.LATEST, {"checkpoint": final.name})
    files.reach("latest", step, trainer_pid())
    gone = keep.choose(folder)
    for path in gone:
        remove(path)
        files.reach("pruned", step, trainer_pid())
    return [path.name for path in gone]


def remove(path: Path) -> None:
    """Removes a checkpoint: first its name, so that no half of one is ever listed."""
    dying = path.with_name(f"{path.name}.tmp-removed")
    shutil.rmtree(dying, ignore_errors=True)
    os.rename(path, dying)
    shutil.rmtree(dying, ignore_errors=True)


def discard(temporary: Path) -> None:
    """Removes what a failed save left."""
    shutil.rmtree(temporary, ignore_errors=True)


def probe(folder: Path, rank: int) -> None:
    """Writes, syncs, renames, reads and removes a file: what a save will do."""
    folder.mkdir(parents=True, exist_ok=True)
    first, second = folder / f"probe_{rank}.tmp", folder / f"probe_{rank}"
    files.write_durably(first, {"rank": rank})
    os.rename(first, second)
    second.read_bytes()
    second.unlink()


def sweep(folder: Path) -> None:
    """Removes what interrupted saves left; while no other process saves here."""
    for path in folder.glob("step_*.tmp*"):
        shutil.rmtree(path, ignore_errors=True)
