"""Performs the parts of a save that touch files, all of which run in the writer process.

1. Every rank writes its shards into `step_N.tmp-<id>/`.
2. It makes them durable, and reads them back from the disk.
3. All ranks vote (see `saver`).
4. Rank 0 writes the manifest.
5. It renames the folder.
6. It updates `latest` and deletes old checkpoints.
7. A later start trusts a checkpoint only if its files match the manifest.
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

from conf.files import fsync_path
from pretrain.checkpoints import direct_io, files
from pretrain.checkpoints.retention import Retention
from pretrain.checkpoints.staging import Staged
from pretrain.checkpoints.writer_process import shared_memory


class ResolvedPlanner:
    """A planner with the only method that a storage writer calls: it returns an item's value."""

    def __init__(self, items: list[WriteItem], contents: list[Any]) -> None:
        self._contents = {item.index: data for item, data in zip(items, contents, strict=True)}

    def resolve_data(self, item: WriteItem) -> Any:
        """Returns the value of an item."""
        return self._contents[item.index]


def write_shards(folder: Path, staged: Staged) -> tuple[dict[str, Any], list[Any]]:
    """Writes this rank's staged values, makes them durable and reads them back from the disk.

    Returns the manifest entries of the files, and DCP's results. Raises OSError if the disk returns
    other bytes.
    """
    memory = shared_memory()
    folder.mkdir(parents=True, exist_ok=True)
    torch.serialization.set_crc32_options(False)  # the manifest has better hashes
    # The values are in host memory, so none is copied ahead, for which DCP would initialize CUDA.
    writer = FileSystemWriter(folder, thread_count=1, sync_files=False, per_thread_copy_ahead=0)
    writer.fs = disk = direct_io.DirectFileSystem()
    planner: Any = ResolvedPlanner(staged.plan.items, staged.values(memory))
    try:
        results = writer.write_data(staged.plan, planner).wait()
    except RuntimeError as error:  # torch's zip writer does not tell why it could not write
        free = shutil.disk_usage(folder).free
        if free < staged.bytes:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder)) from error
        raise
    entries = {}
    for name, digest in sorted(disk.digests.items()):
        if direct_io.digest(folder / name) != digest:
            raise OSError(f"{folder / name} does not read back as it was written.")
        entries[name] = {"bytes": (folder / name).stat().st_size, "xxh3_128": digest}
    return entries, results


def commit(
    temporary: Path,
    final: Path,
    metadata: Metadata,
    votes: list[tuple[dict[str, Any], list[Any]]],
    about: Mapping[str, Any],
    keep: Retention,
) -> list[str]:
    """Turns all ranks' shards into a checkpoint, and returns the names of deleted checkpoints."""
    folder = final.parent
    for log in folder.parent.glob("*.jsonl"):  # the log must survive a power failure too
        with contextlib.suppress(OSError):
            fsync_path(log)
    FileSystemWriter(temporary).finish(metadata, [results for _, results in votes])
    entries = {name: entry for part, _ in votes for name, entry in part.items()}
    entries[".metadata"] = files.file_entry(temporary / ".metadata")
    files.write_manifest(temporary, {**about, "torch": torch.__version__, "files": entries})
    problem = files.verdict(temporary)  # the files of other ranks may have been lost since
    if problem is not None:
        raise OSError(problem)
    if final.exists():
        files.quarantine(final)
    os.rename(temporary, final)
    fsync_path(folder)
    files.write_durably(folder / files.LATEST, {"checkpoint": final.name})
    deleted = keep.choose(folder)
    for path in deleted:
        remove(path)
    return [path.name for path in deleted]


def remove(path: Path) -> None:
    """Removes a checkpoint, renaming it first so that a partial one is never listed."""
    dying = path.with_name(f"{path.name}.tmp-removed")
    shutil.rmtree(dying, ignore_errors=True)
    os.rename(path, dying)
    shutil.rmtree(dying, ignore_errors=True)


def discard(temporary: Path) -> None:
    """Removes the files of a failed save."""
    shutil.rmtree(temporary, ignore_errors=True)


def try_writing(folder: Path, rank: int) -> None:
    """Writes, renames, reads and removes a small file, as a save does. May raise OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    first, second = folder / f"probe_{rank}.tmp", folder / f"probe_{rank}"
    files.write_durably(first, {"rank": rank})
    os.rename(first, second)
    second.read_bytes()
    second.unlink()


def remove_unfinished(folder: Path) -> None:
    """Removes the files of interrupted saves. No other process may be saving here."""
    for path in folder.glob("step_*.tmp*"):
        shutil.rmtree(path, ignore_errors=True)
