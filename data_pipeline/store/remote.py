"""Reads shards in an object store, through a cache of bounded size on this machine's disk.

The manifest, the tokenizer and the checksums are copied to a cache folder. Tokens are fetched in
blocks of 64 KiB, many of them at a time, and each block is compared with its checksum before it is
used. Training never fetches an index, because EOS marks the end of each document.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from conf.errors import InputError
from conf.files import write_atomically
from data_pipeline.store import storage
from data_pipeline.store.block_cache import Block, BlockCache, cache_folder
from data_pipeline.store.checksums import BLOCK_BYTES, CHECKSUM, checksum_bytes
from data_pipeline.store.manifest import FILE, Manifest
from data_pipeline.store.remote_file import open_binary
from data_pipeline.store.shards import (
    REPAIR,
    DamagedShard,
    Ints,
    describe_wrong_checksum,
    describe_wrong_size,
)

ORIGIN_FILE = "remote.json"
MAX_RANGES_PER_REQUEST = 256
MAX_CHECKSUM_FILES_IN_MEMORY = 512


def cache_corpus(url: str) -> Path:
    """Copies the manifest and tokenizer of a remote corpus to a cache folder, which it returns.

    The folder's name is a hash of the URL and the manifest, so a corpus that is made again gets
    another folder. `remote_url` returns the URL that a folder was copied from.

    Raises:
        InputError: There is no corpus at the URL.
        StorageError: The store does not answer.
    """
    url = url.rstrip("/")
    manifest_url = storage.join(url, FILE)
    try:
        with open_binary(manifest_url) as file:
            content = file.read()
    except FileNotFoundError:
        raise InputError(
            f"{manifest_url} does not exist. Upload a folder that python -m data_pipeline tokenize "
            "made."
        ) from None
    try:
        tokenizer = str(json.loads(content)["tokenizer"]["file"])
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{manifest_url} is not a manifest of a Headwater corpus ({error}). Upload the corpus "
            "again."
        ) from None
    name = hashlib.sha256(url.encode() + b"\0" + content).hexdigest()[:24]
    folder = cache_folder() / name
    for file_name in (tokenizer, "token_bytes.npy"):
        if not (folder / file_name).is_file():
            storage.fetch(storage.join(url, file_name), folder / file_name)
    _write(folder / ORIGIN_FILE, json.dumps({"url": url}).encode())
    _write(folder / FILE, content)
    return folder


def remote_url(manifest: Manifest) -> str:
    """Returns the URL of a corpus that `cache_corpus` copied, or '' for a local corpus."""
    path = manifest.folder / ORIGIN_FILE
    return str(json.loads(path.read_text())["url"]) if path.is_file() else ""


def cached_file(manifest: Manifest, name: str) -> Path:
    """Returns the local path of a file of a corpus, which is fetched if the corpus is remote."""
    path = manifest.folder / name
    url = remote_url(manifest)
    if url and not path.is_file() and storage.file_info(storage.join(url, name)) is not None:
        storage.fetch(storage.join(url, name), path)
    return path


class RemoteShards:
    """A `ShardReader` for shards in an object store.

    Raises:
        InputError: The documents do not all end in EOS, so the indices would be needed.
    """

    def __init__(
        self,
        manifest: Manifest,
        entries: Sequence[Mapping[str, Any]],
        cache: BlockCache,
    ) -> None:
        self.url = remote_url(manifest)
        if not manifest.ends_in_eos:
            raise InputError(
                f"{self.url} is remote, but not all of its documents end in EOS "
                "(ends_in_eos=false in its manifest). Copy the corpus to this machine."
            )
        self.folder = manifest.folder
        self.entries = entries
        self.dtype = np.dtype(manifest.dtype)
        self.cache = cache
        self._numbers = {self.name(number): number for number in range(len(entries))}
        self._checksums = lru_cache(MAX_CHECKSUM_FILES_IN_MEMORY)(self._read_checksums)

    def name(self, number: int) -> str:
        """Returns the URL of a shard's `.bin` file."""
        return storage.join(self.url, self.entries[number]["file"]) + ".bin"

    def read(self, number: int, offset: int, out: NDArray[np.integer]) -> None:
        """Fills `out` with verified tokens of a shard from `offset` on."""
        width = self.dtype.itemsize
        data = self._read_bytes(self.name(number), offset * width, (offset + len(out)) * width)
        out[:] = np.frombuffer(data, self.dtype)

    def read_mask(self, number: int, offset: int, out: NDArray[np.uint8]) -> None:
        """Fills `out` with 1 for each token that is not trained on, else 0."""
        path = self.name(number).removesuffix(".bin") + ".mask"
        out[:] = np.frombuffer(self._read_bytes(path, offset, offset + len(out)), np.uint8)

    def document_starts(self, number: int, start: int, end: int) -> Ints:
        """Raises NotImplementedError, because EOS marks the documents of a remote corpus."""
        raise NotImplementedError("EOS marks the end of documents in a remote corpus")

    def prefetch(self, ranges: Iterable[tuple[int, int, int]]) -> None:
        """Fetches the blocks of token ranges (shard number, start, end) that are not cached."""
        width = self.dtype.itemsize
        blocks: dict[Block, None] = {}
        for number, start, end in ranges:
            path = self.name(number)
            blocks |= dict.fromkeys(_blocks(path, start * width, end * width))
            if self.entries[number].get("masked"):
                mask = path.removesuffix(".bin") + ".mask"
                blocks |= dict.fromkeys(_blocks(mask, start, end))
        self._fetch_missing(blocks)

    def _read_bytes(self, path: str, start: int, end: int) -> bytes:
        blocks = _blocks(path, start, end)
        found: dict[Block, bytes] = {}
        while missing := [block for block in blocks if block not in found]:
            for block in missing:
                data = self.cache.get(block)
                if data is not None:
                    found[block] = data
            # A block that is evicted between `get` and `claim` is requested in the next round.
            found |= self._fetch_missing(block for block in missing if block not in found)
        whole = b"".join(found[block] for block in blocks)
        skip = start % BLOCK_BYTES
        return whole[skip : skip + end - start]

    def _fetch_missing(self, blocks: Iterable[Block]) -> dict[Block, bytes]:
        """Fetches the blocks that are not cached, and returns them."""
        claimed, pending = self.cache.claim(blocks)
        loaded: dict[Block, bytes] = {}
        try:
            self._fetch_checksums({path for path, _ in claimed})
            ranges = _ranges(claimed)
            for first in range(0, len(ranges), MAX_RANGES_PER_REQUEST):
                group = ranges[first : first + MAX_RANGES_PER_REQUEST]
                for block, data in self._fetch_verified(group).items():
                    self.cache.put(block, data)
                    loaded[block] = data
        except FileNotFoundError as error:
            first_file = min(path for path, _ in claimed)
            damaged = DamagedShard(
                f"{first_file} or another file of this shard is missing. {REPAIR}"
            )
            self.cache.fail(claimed, damaged)
            raise damaged from error
        except BaseException as error:
            self.cache.fail(claimed, error)
            raise
        return loaded | {block: future.result() for block, future in pending.items()}

    def _fetch_verified(self, ranges: list[tuple[str, int, int]]) -> dict[Block, bytes]:
        """Fetches blocks [first, last) of files and compares them with their checksums.

        A block that differs is fetched once more, since it may have been damaged in transit.
        """
        parts = [
            (path, first * BLOCK_BYTES, min(last * BLOCK_BYTES, self._file_bytes(path)))
            for path, first, last in ranges
        ]
        found = {}
        for (path, first, last), data in zip(ranges, storage.read_many(parts), strict=True):
            for block in range(first, last):
                at = (block - first) * BLOCK_BYTES
                found[path, block] = data[at : at + BLOCK_BYTES]
        wrong = [block for block, data in found.items() if not self._matches_checksum(block, data)]
        again = [
            (path, at * BLOCK_BYTES, at * BLOCK_BYTES + len(found[path, at])) for path, at in wrong
        ]
        for key, data in zip(wrong, storage.read_many(again), strict=True):
            if not self._matches_checksum(key, data):
                raise DamagedShard(describe_wrong_checksum(*key, len(data), self.dtype.itemsize))
            found[key] = data
        return found

    def _file_bytes(self, path: str) -> int:
        if path in self._numbers:
            return int(self.entries[self._numbers[path]]["tokens"]) * self.dtype.itemsize
        return int(self.entries[self._numbers[path.removesuffix(".mask") + ".bin"]]["tokens"])

    def _matches_checksum(self, block: Block, data: bytes) -> bool:
        path, position = block
        number = self._numbers.get(path)
        if number is None or not self.entries[number].get("sums"):
            return True
        return xxhash.xxh3_64_intdigest(data) == int(self._checksums(number)[position])

    def _checksum_path(self, number: int) -> Path:
        return self.folder / f"{self.entries[number]['file']}.sums"

    def _fetch_checksums(self, paths: Iterable[str]) -> None:
        """Copies the checksums of these files to the cache folder unless they are there already."""
        numbers = sorted(self._numbers[path] for path in paths if path in self._numbers)
        missing = [
            number
            for number in numbers
            if self.entries[number].get("sums") and not self._checksum_path(number).is_file()
        ]
        parts = [
            (f"{self.name(number).removesuffix('.bin')}.sums", 0, self._checksum_bytes(number))
            for number in missing
        ]
        for number, data in zip(missing, storage.read_many(parts), strict=True):
            _write(self._checksum_path(number), data)

    def _checksum_bytes(self, number: int) -> int:
        return checksum_bytes(self._file_bytes(self.name(number)))

    def _read_checksums(self, number: int) -> NDArray[np.uint64]:
        path = self._checksum_path(number)
        data = path.read_bytes()
        if len(data) != self._checksum_bytes(number):
            raise DamagedShard(describe_wrong_size(path, len(data), self._checksum_bytes(number)))
        return np.frombuffer(data, CHECKSUM)


def _blocks(path: str, start: int, end: int) -> list[Block]:
    return [(path, n) for n in range(start // BLOCK_BYTES, (end - 1) // BLOCK_BYTES + 1)]


def _ranges(blocks: Iterable[Block]) -> list[tuple[str, int, int]]:
    """Merges adjacent blocks into ranges (file, first, last + 1), which are fetched as a whole."""
    ranges: list[tuple[str, int, int]] = []
    for path, number in sorted(blocks):
        if ranges and ranges[-1][0] == path and ranges[-1][2] == number:
            ranges[-1] = path, ranges[-1][1], number + 1
        else:
            ranges.append((path, number, number + 1))
    return ranges


def _write(path: Path, content: bytes) -> None:
    write_atomically(path, lambda file: file.write(content))
