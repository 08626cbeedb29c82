"""Reads the shards of a source as one stream of tokens.

A corpus may have tens of thousands of shards, so a shard is only opened when it is first read, and
its content is verified then. Memory and start-up time depend on the manifest alone.
"""

from __future__ import annotations

import resource
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from data_pipeline.store.shards import DamagedShard, Ints, Shard

Entries = Sequence[Mapping[str, Any]]
CHECK_TOKENS = 1 << 20
MAX_OPEN_SHARDS = min(2048, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 6)
"""Maximum number of open shards per process.

Each mapped file needs a file descriptor, and a shard has up to three files."""


class ShardReader(Protocol):
    """Reader of the shards of a source, which are numbered in the order of the manifest."""

    def read(self, number: int, offset: int, out: NDArray[np.integer]) -> None:
        """Fills `out` with verified tokens of a shard from `offset` on."""

    def read_mask(self, number: int, offset: int, out: NDArray[np.uint8]) -> None:
        """Fills `out` with 1 for each token that is not trained on, else 0."""

    def document_starts(self, number: int, start: int, end: int) -> Ints:
        """Returns the token offsets of the documents of a shard that start in [start, end)."""

    def prefetch(self, ranges: Iterable[tuple[int, int, int]]) -> None:
        """Prefetches token ranges (shard number, start, end) that will be read soon."""

    def name(self, number: int) -> str:
        """Returns the path or URL of a shard's `.bin` file, for messages."""


class OpenShards:
    """Least-recently-used cache of at most `limit` open shards."""

    def __init__(self, limit: int = MAX_OPEN_SHARDS) -> None:
        self.limit = limit
        self._shards: OrderedDict[Any, Shard] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._shards)

    def get(self, key: Any, make: Callable[[], Shard]) -> Shard:
        """Returns the open shard of a key, which `make` opens if it is not in the cache."""
        with self._lock:
            shard = self._shards.get(key)
            if shard is not None:
                self._shards.move_to_end(key)
                return shard
        shard = make()
        with self._lock:
            self._shards[key] = shard
            while len(self._shards) > self.limit:
                self._shards.popitem(last=False)  # unmapped once no array refers to its map
        return shard


OPEN_SHARDS = OpenShards()
"""The open shards of this process, whose limit all streams share."""
_reader_ids = count()


class LocalShards:
    """A `ShardReader` for shards on this machine."""

    def __init__(
        self, folder: Path, entries: Entries, dtype: str, shards: OpenShards = OPEN_SHARDS
    ) -> None:
        self.folder, self.entries, self.dtype, self.shards = folder, entries, dtype, shards
        self._checked: dict[int, bytearray] = {}
        self._id = next(_reader_ids)

    def open(self, number: int) -> Shard:
        """Returns a shard by its number, and opens it if necessary."""
        return self.shards.get((self._id, number), lambda: self._open(number))

    def _open(self, number: int) -> Shard:
        entry = self.entries[number]
        checked = self._checked.get(number)
        shard = Shard(self.folder / entry["file"], self.dtype, entry, checked)
        self._checked[number] = shard.checked
        return shard

    def read(self, number: int, offset: int, out: NDArray[np.integer]) -> None:
        """Fills `out` with the tokens of a shard from `offset` on, after verifying them."""
        self.open(number).read(offset, out)

    def read_mask(self, number: int, offset: int, out: NDArray[np.uint8]) -> None:
        """Fills `out` with 1 for each token of a shard that is not trained on, else 0."""
        self.open(number).read_mask(offset, out)

    def document_starts(self, number: int, start: int, end: int) -> Ints:
        """Returns the offsets of the documents of a shard that start in [start, end)."""
        return self.open(number).document_starts(start, end)

    def prefetch(self, ranges: Iterable[tuple[int, int, int]]) -> None:
        """Does nothing, because the operating system reads ahead."""

    def name(self, number: int) -> str:
        """Returns the path of a shard's `.bin` file."""
        return f"{self.folder / self.entries[number]['file']}.bin"


class TokenStream:
    """The concatenated shards of a source.

    Attributes:
        eos_id: Id of EOS, if documents start after each EOS and nowhere else; None if only the
            index tells where documents start.
        masked: True if some tokens are not trained on.
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
        """Returns the number of tokens."""
        return int(self._ends[-1]) if len(self._ends) else 0

    def locate(self, offset: int) -> tuple[int, int]:
        """Returns the number of the shard that holds a token, and the token's offset in it."""
        numbers, offsets = self._locate(np.array([offset]))
        return numbers[0], offsets[0]

    def start_of(self, number: int) -> int:
        """Returns the offset in the stream at which a shard starts."""
        return int(self._ends[number - 1]) if number else 0

    def parts(self, start: int, tokens: int) -> list[tuple[int, int, int]]:
        """Returns the parts (shard number, start, end) of the `tokens` tokens from `start` on."""
        (number,), (offset,) = self._locate(np.array([start]))
        return self._parts(number, offset, tokens)

    def read(
        self,
        starts: Ints,
        tokens: NDArray[np.integer],
        rows: Ints,
        begins: NDArray[np.bool_] | None = None,
        mask: NDArray[np.uint8] | None = None,
    ) -> None:
        """Fills rows of `tokens`, each with the tokens of the stream from one of the `starts` on.

        Args:
            starts: (n,) offsets in the stream.
            tokens: (batch, length) array that is written to.
            rows: (n,) row of `tokens` for each start.
            begins: (batch, length - 1) array, set to True at [row, i] if a document starts at
                i + 1. It is not changed if `eos_id` is set, which gives the same information.
            mask: (batch, length) array, set to 1 for each token that is not trained on.

        Raises:
            DamagedShard: A shard differs from the manifest. The error names the shard and tokens.
        """
        numbers, offsets = self._locate(starts)
        length = tokens.shape[1]
        for row, number, offset in zip(rows.tolist(), numbers, offsets, strict=True):
            filled = 0
            for part, start, end in self._parts(number, offset, length):
                upto = filled + end - start
                self.shards.read(part, start, tokens[row, filled:upto])
                if begins is not None and self.eos_id is None:
                    found = self.shards.document_starts(part, start, end) + (filled - start - 1)
                    begins[row, found[found >= 0]] = True
                if mask is not None and self._masked[part]:
                    self.shards.read_mask(part, start, mask[row, filled:upto])
                filled = upto

    def prefetch(self, starts: Ints, length: int) -> None:
        """Prefetches everything that `read` needs for `length` tokens from each of the starts."""
        located = zip(*self._locate(starts), strict=True)
        self.shards.prefetch(p for number, at in located for p in self._parts(number, at, length))

    def check_ids(self, max_tokens: int) -> None:
        """Reads the first `max_tokens` tokens and checks that their ids are in the vocabulary.

        Raises:
            DamagedShard: An id is outside the vocabulary, or a shard is damaged.
        """
        for start in range(0, min(max_tokens, len(self)), CHECK_TOKENS):
            tokens = np.empty((1, min(CHECK_TOKENS, len(self) - start)), np.int64)
            self.read(np.array([start]), tokens, np.array([0]))
            self.check_vocabulary(start, tokens[0])

    def check_vocabulary(self, start: int, tokens: NDArray[np.integer]) -> None:
        """Raises DamagedShard if one of the tokens read from `start` on is not a valid id."""
        wrong = np.flatnonzero((tokens >= self.vocab_size) | (tokens < 0))
        if wrong.size:
            number, offset = self.locate(start + int(wrong[0]))
            raise DamagedShard(
                f"{self.shards.name(number)} has the id {int(tokens[wrong[0]])} at token {offset}, "
                f"outside the vocabulary of {self.vocab_size} ids. The file is damaged or was made "
                "with another tokenizer. Tokenize the corpus again."
            )

    def _locate(self, starts: Ints) -> tuple[list[int], list[int]]:
        numbers = np.searchsorted(self._ends, starts, side="right")
        before = np.where(numbers > 0, self._ends[numbers - 1], 0)
        return numbers.tolist(), (starts - before).tolist()

    def _parts(self, number: int, offset: int, tokens: int) -> list[tuple[int, int, int]]:
        parts = []
        while tokens:
            size = int(self._ends[number]) - self.start_of(number)
            end = min(size, offset + tokens)
            if end > offset:
                parts.append((number, offset, end))
            tokens -= end - offset
            number, offset = number + 1, 0
        return parts
