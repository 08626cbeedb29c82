"""The shards of a source as one stream of tokens, opened when they are first read.

A corpus may have tens of thousands of shards: memory and start-up depend on the manifest alone.
At the start the sizes of all files are compared with it; what is in them is when it is read.
"""

from __future__ import annotations

import os
import resource
import threading
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from itertools import count
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from data_pipeline.store.index_file import index_bytes
from data_pipeline.store.manifest import Manifest
from data_pipeline.store.shards import (
    AGAIN,
    DamagedShard,
    Index,
    Shard,
    sums_bytes,
    wrong_size,
)

Ints = NDArray[np.int64]
Entries = Sequence[Mapping[str, Any]]
CHECK_TOKENS = 1 << 20
MOST_OPEN = min(2048, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 6)
"""Shards that are open at a time in a process; a map holds a file descriptor, up to three each."""


class ShardReader(Protocol):
    """The shards of a source, by their number in the manifest."""

    def read(self, number: int, offset: int, out: NDArray[np.integer]) -> None:
        """Fills `out` with tokens of a shard from offset on, checked."""

    def read_mask(self, number: int, offset: int, out: NDArray[np.uint8]) -> None:
        """Fills `out` with 1 for tokens that are not trained on."""

    def document_starts(self, number: int, start: int, end: int) -> Ints:
        """Token offsets of the documents of a shard that begin in [start, end)."""

    def prefetch(self, parts: Iterable[tuple[int, int, int]]) -> None:
        """Brings (number, start, end) close, many at a time; they will be read soon."""

    def name(self, number: int) -> str:
        """The `.bin` file, for messages."""


class OpenShards:
    """The shards that were read last stay open, at most `limit` of them."""

    def __init__(self, limit: int = MOST_OPEN) -> None:
        self.limit = limit
        self._shards: OrderedDict[Any, Shard] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._shards)

    def get(self, key: Any, make: Callable[[], Shard]) -> Shard:
        """The open shard of that key, or a new one."""
        with self._lock:
            shard = self._shards.get(key)
            if shard is not None:
                self._shards.move_to_end(key)
                return shard
        shard = make()
        with self._lock:
            self._shards[key] = shard
            while len(self._shards) > self.limit:
                self._shards.popitem(last=False)  # its map goes when no array shows it any more
        return shard


OPEN = OpenShards()
"""Of this process: all streams share the limit."""
KEYS = count()


class LocalShards:
    """Shards of a source on this machine."""

    def __init__(self, folder: Path, entries: Entries, dtype: str, shards: OpenShards = OPEN):
        self.folder, self.entries, self.dtype, self.shards = folder, entries, dtype, shards
        self._checked: dict[int, bytearray] = {}
        self._key = next(KEYS)

    def open(self, number: int) -> Shard:
        """The shard of that number."""
        return self.shards.get((self._key, number), lambda: self._open(number))

    def _open(self, number: int) -> Shard:
        entry = self.entries[number]
        checked = self._checked.get(number)
        shard = Shard(self.folder / entry["file"], self.dtype, entry, checked)
        self._checked[number] = shard.checked
        return shard

    def read(self, number: int, offset: int, out: NDArray[np.integer]) -> None:
        """See ShardReader."""
        self.open(number).read(offset, out)

    def read_mask(self, number: int, offset: int, out: NDArray[np.uint8]) -> None:
        """See ShardReader."""
        self.open(number).read_mask(offset, out)

    def document_starts(self, number: int, start: int, end: int) -> Ints:
        """See ShardReader."""
        return self.open(number).document_starts(start, end)

    def prefetch(self, parts: Iterable[tuple[int, int, int]]) -> None:
        """Nothing: the page cache reads ahead."""

    def name(self, number: int) -> str:
        """See ShardReader."""
        return f"{self.folder / self.entries[number]['file']}.bin"


class TokenStream:
    """The shards of a source, one after the other, as one stream of tokens.

    eos_id: of corpora in which it ends every document and is nowhere else; None where only the
        indices know where documents begin.
    """

    def __init__(
        self, shards: ShardReader, entries: Entries, vocab_size: int, eos_id: int | None
    ) -> None:
        self.shards = shards
        self.vocab_size = vocab_size
        self.eos_id = eos_id
        self._ends = np.cumsum([entry["tokens"] for entry in entries], dtype=np.int64)
        self._masked = np.array([bool(entry.get("masked")) for entry in entries], bool)
        self.masked = bool(self._masked.any())

    def __len__(self) -> int:
        """Tokens of the stream."""
        return int(self._ends[-1]) if len(self._ends) else 0

    def locate(self, offset: int) -> tuple[int, int]:
        """The number of the shard that holds the token at offset, and where in it."""
        numbers, inside = self._locate(np.array([offset]))
        return numbers[0], inside[0]

    def start_of(self, number: int) -> int:
        """Where in the stream a shard begins."""
        return int(self._ends[number - 1]) if number else 0

    def parts(self, start: int, tokens: int) -> list[tuple[int, int, int]]:
        """(shard, start, end) that hold the tokens from start on; mostly one."""
        (number,), (inside,) = self._locate(np.array([start]))
        return self._parts(number, inside, tokens)

    def read(
        self,
        starts: Ints,
        tokens: NDArray[np.integer],
        rows: Ints,
        begins: NDArray[np.bool_] | None = None,
        mask: NDArray[np.uint8] | None = None,
    ) -> None:
        """Fills tokens[row] with the stream from start on, for all pairs of starts and rows.

        tokens: (batch, length). begins: (batch, length - 1), becomes True at [row, i] where a
        document begins at i + 1; left alone where the EOS says so. mask: (batch, length), becomes 1
        where a token is not trained on.

        Raises DamagedShard naming shard and token where a shard is not what the manifest says.
        """
        numbers, insides = self._locate(starts)
        length = tokens.shape[1]
        for row, number, inside in zip(rows.tolist(), numbers, insides, strict=True):
            filled = 0
            for part, start, end in self._parts(number, inside, length):
                upto = filled + end - start
                self.shards.read(part, start, tokens[row, filled:upto])
                if begins is not None and self.eos_id is None:
                    found = self.shards.document_starts(part, start, end) + (filled - start - 1)
                    begins[row, found[found >= 0]] = True
                if mask is not None and self._masked[part]:
                    self.shards.read_mask(part, start, mask[row, filled:upto])
                filled = upto

    def prefetch(self, starts: Ints, length: int) -> None:
        """Brings what `read` of these starts would touch close, many parts at a time."""
        places = zip(*self._locate(starts), strict=True)
        self.shards.prefetch(p for number, at in places for p in self._parts(number, at, length))

    def check_ids(self, most_tokens: int) -> None:
        """Reads up to most_tokens tokens from the start; raises DamagedShard as `read` does, and
        where an id is beyond the vocabulary."""
        for start in range(0, min(most_tokens, len(self)), CHECK_TOKENS):
            tokens = np.empty((1, min(CHECK_TOKENS, len(self) - start)), np.int64)
            self.read(np.array([start]), tokens, np.array([0]))
            self.check_vocabulary(start, tokens[0])

    def check_vocabulary(self, start: int, tokens: NDArray[np.integer]) -> None:
        """Raises DamagedShard where one of the tokens, read from start on, is no id."""
        wrong = np.flatnonzero((tokens >= self.vocab_size) | (tokens < 0))
        if wrong.size:
            number, offset = self.locate(start + int(wrong[0]))
            raise DamagedShard(
                f"{self.shards.name(number)} holds token id {int(tokens[wrong[0]])} at token "
                f"{offset}, beyond the vocabulary of {self.vocab_size}: the file is damaged or of "
                "another tokenizer."
            )

    def _locate(self, starts: Ints) -> tuple[list[int], list[int]]:
        numbers = np.searchsorted(self._ends, starts, side="right")
        before = np.where(numbers > 0, self._ends[numbers - 1], 0)
        return numbers.tolist(), (starts - before).tolist()

    def _parts(self, number: int, inside: int, tokens: int) -> list[tuple[int, int, int]]:
        parts = []
        while tokens:
            size = int(self._ends[number]) - self.start_of(number)
            end = min(size, inside + tokens)
            if end > inside:
                parts.append((number, inside, end))
            tokens -= end - inside
            number, inside = number + 1, 0
        return parts


def check_files(manifest: Manifest, split: str, sources: Iterable[str]) -> None:
    """Compares the sizes of all files of these sources with the manifest: one listing a folder.

    Raises DamagedShard naming the file that is missing or of another size.
    """
    folders: dict[Path, dict[str, int]] = defaultdict(dict)
    for source in sources:
        for entry in manifest.shards(split, source):
            prefix = manifest.folder / entry["file"]
            for ending, size in expected_sizes(manifest, entry).items():
                folders[prefix.parent][prefix.name + ending] = size
    for folder, expected in folders.items():
        sizes = {}
        with os.scandir(folder) if folder.is_dir() else nullcontext(()) as files:
            for file in files:
                if file.name in expected:
                    sizes[file.name] = file.stat().st_size
        for name, size in expected.items():
            if name not in sizes:
                raise DamagedShard(f"{folder / name} is missing: {AGAIN}")
            if name.endswith(".bin") and sizes[name] != size:  # another type is another size
                Index((folder / name).with_suffix(".idx"), manifest.dtype)
            compare_size(folder / name, sizes[name], size)


def expected_sizes(manifest: Manifest, entry: Mapping[str, Any]) -> dict[str, int]:
    """Bytes of a shard's files by ending. An index may hold more sequences than documents where
    others made it: then its size is a lower bound, given as a negative number."""
    tokens = int(entry["tokens"])
    size = tokens * np.dtype(manifest.dtype).itemsize
    sequences = entry.get("sequences", entry["documents"])
    index = index_bytes(int(sequences), int(entry["documents"]))
    known = "sequences" in entry or manifest.origin == "tokenize"
    sizes = {".bin": size, ".idx": index if known else -index}
    if entry.get("sums"):
        sizes[".sums"] = sums_bytes(size)
    if entry.get("masked"):
        sizes[".mask"] = tokens
    return sizes


def compare_size(path: Path | str, found: int, expected: int) -> None:
    """Raises DamagedShard where a file has not the size of `expected_sizes`."""
    if found != expected and not (expected < 0 and found >= -expected):
        raise DamagedShard(wrong_size(path, found, abs(expected)))
