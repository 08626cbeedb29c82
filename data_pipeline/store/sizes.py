"""Compares the file sizes of a corpus with its manifest, before anything is read.

This needs only one listing per folder, so it takes seconds for tens of thousands of shards. The
content of a file is checked later, when it is read.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.store import storage
from data_pipeline.store.checksums import checksum_bytes
from data_pipeline.store.index_file import index_bytes
from data_pipeline.store.manifest import Manifest
from data_pipeline.store.remote import remote_url
from data_pipeline.store.shards import (
    REPAIR,
    DamagedShard,
    ShardIndex,
    describe_wrong_size,
)


def check_sizes(manifest: Manifest, split: str, sources: Iterable[str]) -> None:
    """Raises DamagedShard if a file of these sources is missing or has the wrong size."""
    url = remote_url(manifest)
    root = url or str(manifest.folder)
    expected_by_folder: dict[str, dict[str, int]] = defaultdict(dict)
    for source in sources:
        for entry in manifest.shards(split, source):
            prefix = storage.join(root, entry["file"])
            folder = prefix.rpartition("/")[0]
            for suffix, size in expected_sizes(manifest, entry).items():
                expected_by_folder[folder][prefix + suffix] = size
    for folder, expected in expected_by_folder.items():
        found = _remote_sizes(folder) if url else _local_sizes(folder, expected)
        for path, size in expected.items():
            if path not in found:
                raise DamagedShard(f"{path} is missing. {REPAIR}")
            if not url and path.endswith(".bin") and found[path] != size:
                # Opening an index with another type of ids raises an error that explains more.
                ShardIndex(Path(path).with_suffix(".idx"), manifest.dtype)
            if found[path] != size and not (size < 0 and found[path] >= -size):
                raise DamagedShard(describe_wrong_size(path, found[path], abs(size)))


def expected_sizes(manifest: Manifest, entry: Mapping[str, Any]) -> dict[str, int]:
    """Returns the size in bytes of each file of a shard, by suffix.

    The index of a shard made by another program may hold more sequences than documents. Then only a
    lower bound of its size is known, which is returned as a negative number.
    """
    tokens = int(entry["tokens"])
    size = tokens * np.dtype(manifest.dtype).itemsize
    sequences = entry.get("sequences", entry["documents"])
    index = index_bytes(int(sequences), int(entry["documents"]))
    is_exact = "sequences" in entry or manifest.origin == "tokenize"
    sizes = {".bin": size, ".idx": index if is_exact else -index}
    if entry.get("sums"):
        sizes[".sums"] = checksum_bytes(size)
    if entry.get("masked"):
        sizes[".mask"] = tokens
    return sizes


def _local_sizes(folder: str, wanted: Mapping[str, int]) -> dict[str, int]:
    sizes = {}
    with os.scandir(folder) if Path(folder).is_dir() else nullcontext(()) as files:
        for file in files:
            path = storage.join(folder, file.name)
            if path in wanted:
                sizes[path] = file.stat().st_size
    return sizes


def _remote_sizes(folder: str) -> dict[str, int]:
    return {file.path: file.size for file in storage.list_files(folder)}
