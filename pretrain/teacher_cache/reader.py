"""Reads the answers to samples from caches, by sample number and verified.

Files are mapped into memory. When a process first reads a block of 64 KiB, it compares the block's
checksum in `.sums`; and each sample's context is compared with the one that the teacher was given.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from threading import Lock

import numpy as np
import xxhash
from numpy.typing import NDArray

from data_pipeline.sampling.batches import Batch
from data_pipeline.sampling.locations import Ints
from data_pipeline.store.checksums import BLOCK_BYTES, CHECKSUM
from data_pipeline.store.shards import DamagedShard, map_file, mapping_of
from pretrain.teacher_cache.coverage import Contexts, usable_samples
from pretrain.teacher_cache.manifest import REPAIR, CacheManifest
from pretrain.teacher_cache.records import Records, as_bytes, context_hashes

OPEN_FILES = 64
"""Number of files that a process keeps mapped. Training reads them in order."""


class UnitFile:
    """One file of a cache, mapped into memory.

    Args:
        prefix: Path without suffix.
        dtype: Type of the records.
        checked: One bit per block, set once its checksum has been verified. A caller that reopens
            a file passes it on, so that a process verifies each block once.

    Raises:
        DamagedShard: A file is missing.
    """

    def __init__(self, prefix: Path, dtype: np.dtype, checked: bytearray) -> None:
        self.path = prefix.with_name(prefix.name + ".bin")
        sums = prefix.with_name(prefix.name + ".sums")
        try:
            self._raw = map_file(self.path)
            self._sums: NDArray[np.uint64] = np.array(map_file(sums).view(CHECKSUM))
        except FileNotFoundError as error:
            raise DamagedShard(f"{error.filename} is missing. {REPAIR}") from None
        self.dtype, self.checked = dtype, checked
        self._map = mapping_of(self._raw)

    def read(self, first: int, count: int, base: int) -> Records:
        """Returns a copy of `count` records from `first` on, both counted in the file.

        base: number of the file's first sample in its stage, for messages.

        Raises:
            DamagedShard: A block differs from its checksum, or the file has shrunk. (Reading a page
                after the end of a mapped file would end the process with SIGBUS.)
        """
        size = self.dtype.itemsize
        if self._map is not None and (now := self._map.size()) != len(self._raw):
            raise DamagedShard(f"{self.path} has shrunk to {now} bytes. {REPAIR}")
        begin, end = first * size, (first + count) * size
        for block in range(begin // BLOCK_BYTES, -(-end // BLOCK_BYTES)):
            if not self.checked[block >> 3] >> (block & 7) & 1:
                self._check(block, base)
        return self._raw[begin:end].view(self.dtype).copy()

    def _check(self, block: int, base: int) -> None:
        data = self._raw[block * BLOCK_BYTES : (block + 1) * BLOCK_BYTES]
        if block >= len(self._sums) or xxhash.xxh3_64_intdigest(data.data) != self._sums[block]:
            size, start = self.dtype.itemsize, block * BLOCK_BYTES
            first, last = base + start // size, base + (start + len(data) - 1) // size
            raise DamagedShard(
                f"{self.path}: checksum mismatch in the answers to samples {first} to {last}. "
                f"{REPAIR}"
            )
        self.checked[block >> 3] |= 1 << (block & 7)


class CacheReader:
    """Reads the records of one cache. Threads may share it."""

    def __init__(self, folder: Path, manifest: CacheManifest) -> None:
        self.folder, self.manifest = folder, manifest
        self._entries = [
            sorted((e for e in manifest.files if e["stage"] == number), key=lambda e: e["first"])
            for number in range(len(manifest.stages))
        ]
        self._firsts = [[entry["first"] for entry in entries] for entries in self._entries]
        self._open: OrderedDict[str, UnitFile] = OrderedDict()
        self._checked: dict[str, bytearray] = {}
        self._lock = Lock()

    def read(self, stage: int, first: int, count: int) -> Records:
        """Returns the records of consecutive samples of a stage, which the cache must have."""
        parts, end = [], first + count
        while first < end:
            entry = self._entries[stage][bisect_right(self._firsts[stage], first) - 1]
            inside = first - entry["first"]
            taken = min(end - first, entry["samples"] - inside)
            file = self._file(entry["file"], stage, entry["bytes"])
            parts.append(file.read(inside, taken, entry["first"]))
            first += taken
        return np.concatenate(parts)

    def _file(self, name: str, stage: int, size: int) -> UnitFile:
        with self._lock:
            found = self._open.pop(name, None)
            if found is None:
                checked = self._checked.setdefault(name, bytearray(size // BLOCK_BYTES // 8 + 1))
                dtype = self.manifest.form(stage).dtype
                found = UnitFile(self.folder / name, dtype, checked)
            self._open[name] = found
            if len(self._open) > OPEN_FILES:
                self._open.popitem(last=False)
            return found


class AnswerReader:
    """Reads the answers to the samples of a run from one or more caches.

    Args:
        caches: The caches by folder. An answer is read from the first one that has it.
        run: The contexts of the run.
    """

    def __init__(self, caches: Mapping[str, CacheManifest], run: Contexts) -> None:
        self.run = run
        self._sources = [
            (CacheReader(Path(folder), cache), usable_samples(cache, run))
            for folder, cache in caches.items()
        ]

    def read(self, stage: int, samples: Ints, contexts: NDArray[np.uint64]) -> Records:
        """Returns the records of samples of a stage, (samples,).

        Args:
            stage: Index of the stage.
            samples: (n,) sample numbers.
            contexts: (n,) hashes of the contexts that the run has (`records.context_hashes`).

        Raises:
            DamagedShard: A file is damaged, or the answers are to other contexts.
        """
        parts = []
        for run in _consecutive(samples):
            first, end = int(run[0]), int(run[-1]) + 1
            while first < end:
                reader, last = self._source(stage, first)
                parts.append(reader.read(stage, first, min(end, last) - first))
                first += len(parts[-1])
        if not parts:
            return np.zeros(0, self._sources[0][0].manifest.form(stage).dtype)
        records = np.concatenate(parts)
        wrong = np.flatnonzero(records["context"] != contexts)
        if len(wrong):
            sample = int(samples[wrong[0]])
            reader, _ = self._source(stage, sample)
            raise DamagedShard(
                f"{reader.folder}: the teacher's answers to sample {sample} of stage "
                f"'{self.run.plan.stages[stage].name}' are to other tokens than this run reads. "
                "Restore the corpus, or make the cache again with overwrite=true."
            )
        return records

    def attach(self, stage: int, real: list[Batch], batches: list[Batch]) -> list[Batch]:
        """Returns padded micro-batches with the answers to their samples (`pretrain.loader`).

        real: the micro-batches without padding, and without those that have no samples.
        """
        samples = np.concatenate([np.zeros(0, np.int64), *(batch.samples for batch in real)])
        contexts = [np.zeros(0, np.uint64), *map(context_hashes, real)]
        records = self.read(stage, samples, np.concatenate(contexts))
        ends = np.cumsum([len(batch.samples) for batch in batches])
        return [
            replace(batch, answers=as_bytes(part, len(batch.tokens)))
            for batch, part in zip(batches, np.split(records, ends[:-1]), strict=True)
        ]

    def _source(self, stage: int, sample: int) -> tuple[CacheReader, int]:
        """Returns the first cache that has a sample, and the end of its samples."""
        for reader, usable in self._sources:
            if stage < len(usable) and sample in usable[stage]:
                return reader, usable[stage].stop
        raise IndexError(f"no cache has sample {sample} of stage {stage}")


def _consecutive(samples: Ints) -> Sequence[Ints]:
    """Returns runs of consecutive numbers, in the given order."""
    if not len(samples):
        return []
    return np.split(samples, np.flatnonzero(np.diff(samples) != 1) + 1)
