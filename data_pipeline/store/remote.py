"""A corpus in an object store, read by ranges through a bounded cache on this machine's disk.

The small files are copied to a cache folder (`HEADWATER_CACHE`, by default ~/.cache/headwater).
Tokens come in blocks of 64 KiB, as many at once as are wanted, and each is compared with its
checksum before anybody sees it. No index is ever fetched for training: the EOS ends a document.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from conf.errors import InputError
from conf.files import write_atomically
from data_pipeline.store import storage
from data_pipeline.store.manifest import FILE, Manifest
from data_pipeline.store.shards import AGAIN, DamagedShard, sums_bytes, wrong_block, wrong_size
from data_pipeline.store.streams import Ints, compare_size, expected_sizes
from data_pipeline.store.sums import BLOCK_BYTES, SUM

CACHE_BYTES = 4 << 30
LEAST_CACHE_BYTES = 16 * BLOCK_BYTES
ORIGIN = "remote.json"
RANGES_AT_ONCE = 256
SUMS_KEPT = 512

Block = tuple[str, int]
"""A file of the store and the number of a block in it."""


def cache_folder() -> Path:
    """Where copies of remote files lie."""
    return Path(os.environ.get("HEADWATER_CACHE") or Path.home() / ".cache" / "headwater")


def local_copy(url: str) -> Path:
    """A local folder with the manifest and the tokenizer of a remote corpus; it remembers the URL.

    Its name holds the manifest's hash, so a corpus that was made again is another folder. Raises
    InputError where there is no corpus, StorageError where the store does not answer.
    """
    url = url.rstrip("/")
    manifest_url = storage.join(url, FILE)
    try:
        with storage.open_binary(manifest_url) as file:
            content = file.read()
    except FileNotFoundError:
        raise InputError(
            f"{manifest_url} does not exist: upload a folder made by python -m data_pipeline "
            "tokenize."
        ) from None
    try:
        tokenizer = str(json.loads(content)["tokenizer"]["file"])
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{manifest_url} is not a manifest of this project ({error}).") from None
    name = hashlib.sha256(url.encode() + b"\0" + content).hexdigest()[:24]
    folder = cache_folder() / name
    for file_name in (tokenizer, "token_bytes.npy"):
        if not (folder / file_name).is_file():
            storage.fetch(storage.join(url, file_name), folder / file_name)
    _write(folder / ORIGIN, json.dumps({"url": url}).encode())
    _write(folder / FILE, content)
    return folder


def remote_url(manifest: Manifest) -> str:
    """The URL of a corpus that `local_copy` brought, or an empty string."""
    path = manifest.folder / ORIGIN
    return str(json.loads(path.read_text())["url"]) if path.is_file() else ""


def side_file(manifest: Manifest, name: str) -> Path:
    """The local path of a file of a corpus, fetched where it is remote and not yet here."""
    path = manifest.folder / name
    url = remote_url(manifest)
    if url and not path.is_file() and storage.file_info(storage.join(url, name)) is not None:
        storage.fetch(storage.join(url, name), path)
    return path


def check_remote_files(manifest: Manifest, split: str, sources: Iterable[str]) -> None:
    """Compares the sizes of all files of these sources with the manifest, by listing the store.

    Raises DamagedShard naming the file that is missing or of another size.
    """
    url = remote_url(manifest)
    entries = [entry for source in sources for entry in manifest.shards(split, source)]
    folders = sorted({str(Path(entry["file"]).parent) for entry in entries})
    sizes = {
        file.path: file.size
        for folder in folders
        for file in storage.list_files(storage.join(url, folder))
    }
    for entry in entries:
        for ending, expected in expected_sizes(manifest, entry).items():
            path = storage.join(url, entry["file"] + ending)
            if path not in sizes:
                raise DamagedShard(f"{path} is missing: {AGAIN}")
            compare_size(path, sizes[path], expected)


class BlockCache:
    """The blocks that were used last, on disk, `limit_bytes` of them at most.

    The file has no name: it goes with the process, however that ends.
    """

    def __init__(self, limit_bytes: int) -> None:
        if limit_bytes < LEAST_CACHE_BYTES:
            raise InputError(
                f"data.cache_bytes={limit_bytes}, expected at least {LEAST_CACHE_BYTES}."
            )
        self.limit_bytes = limit_bytes
        self.folder = cache_folder()
        self.folder.mkdir(parents=True, exist_ok=True)
        self._file = tempfile.TemporaryFile(dir=self.folder)  # noqa: SIM115
        self._places: OrderedDict[Block, tuple[int, int]] = OrderedDict()  # slot, size
        self._coming: dict[Block, Future[bytes]] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._places)

    def get(self, block: Block) -> bytes | None:
        """A block, or None where it is not here."""
        with self._lock:
            place = self._places.get(block)
            if place is None:
                return None
            self._places.move_to_end(block)
            return os.pread(self._file.fileno(), place[1], place[0] * BLOCK_BYTES)

    def claim(self, blocks: Iterable[Block]) -> tuple[list[Block], dict[Block, Future[bytes]]]:
        """Of the blocks that are not here: those that the caller must bring (`put` or `fail`), and
        those that another thread is bringing."""
        mine, others = [], {}
        with self._lock:
            for block in blocks:
                if block in self._places:
                    self._places.move_to_end(block)
                elif block in self._coming:
                    others[block] = self._coming[block]
                else:
                    self._coming[block] = Future()
                    mine.append(block)
        return mine, others

    def put(self, block: Block, data: bytes) -> None:
        """Keeps a claimed block; the one that was not used for longest goes."""
        with self._lock:
            slot = len(self._places)
            if (slot + 1) * BLOCK_BYTES > self.limit_bytes:
                slot = self._places.popitem(last=False)[1][0]
            try:
                os.pwrite(self._file.fileno(), data, slot * BLOCK_BYTES)
            except OSError as error:
                raise InputError(
                    f"{self.folder} cannot hold data.cache_bytes={self.limit_bytes} "
                    f"({error.strerror}): make room, lower it, or set HEADWATER_CACHE."
                ) from error
            self._places[block] = slot, len(data)
            self._coming.pop(block).set_result(data)

    def fail(self, blocks: Iterable[Block], error: BaseException) -> None:
        """Gives up claimed blocks: whoever waits for them gets the error."""
        with self._lock:
            for block in blocks:
                future = self._coming.pop(block, None)
                if future is not None:
                    future.set_exception(error)


_shared: BlockCache | None = None


def shared_cache(limit_bytes: int | None = None) -> BlockCache:
    """The cache of this process; a limit makes another one where it differs."""
    global _shared
    if _shared is None or limit_bytes not in (None, _shared.limit_bytes):
        _shared = BlockCache(limit_bytes or CACHE_BYTES)
    return _shared


class RemoteShards:
    """Shards of a source in an object store: a ShardReader. Raises InputError for a corpus whose
    documents do not end in EOS: it would need the indices."""

    def __init__(
        self,
        manifest: Manifest,
        entries: Sequence[Mapping[str, Any]],
        cache: BlockCache,
    ) -> None:
        self.url = remote_url(manifest)
        if not manifest.ends_in_eos:
            raise InputError(
                f"{self.url} is remote, but its documents do not all end in EOS "
                "(ends_in_eos=false in its manifest): copy it to this machine."
            )
        self.folder = manifest.folder
        self.entries = entries
        self.dtype = np.dtype(manifest.dtype)
        self.cache = cache
        self._numbers = {self.name(number): number for number in range(len(entries))}
        self._sums = lru_cache(SUMS_KEPT)(self._read_sums)

    def name(self, number: int) -> str:
        """See ShardReader."""
        return storage.join(self.url, self.entries[number]["file"]) + ".bin"

    def read(self, number: int, offset: int, out: NDArray[np.integer]) -> None:
        """See ShardReader."""
        width = self.dtype.itemsize
        data = self._bytes(self.name(number), offset * width, (offset + len(out)) * width)
        out[:] = np.frombuffer(data, self.dtype)

    def read_mask(self, number: int, offset: int, out: NDArray[np.uint8]) -> None:
        """See ShardReader."""
        path = self.name(number).removesuffix(".bin") + ".mask"
        out[:] = np.frombuffer(self._bytes(path, offset, offset + len(out)), np.uint8)

    def document_starts(self, number: int, start: int, end: int) -> Ints:
        """See ShardReader."""
        raise NotImplementedError("the EOS says where documents begin")

    def prefetch(self, parts: Iterable[tuple[int, int, int]]) -> None:
        """See ShardReader."""
        width = self.dtype.itemsize
        blocks: dict[Block, None] = {}
        for number, start, end in parts:
            path = self.name(number)
            blocks |= dict.fromkeys(_blocks(path, start * width, end * width))
            if self.entries[number].get("masked"):
                mask = path.removesuffix(".bin") + ".mask"
                blocks |= dict.fromkeys(_blocks(mask, start, end))
        self._bring(blocks)

    def _bytes(self, path: str, start: int, end: int) -> bytes:
        blocks = _blocks(path, start, end)
        found: dict[Block, bytes] = {}
        while missing := [block for block in blocks if block not in found]:
            for block in missing:
                data = self.cache.get(block)
                if data is not None:
                    found[block] = data
            # One that went between the two questions is asked for again in the next round.
            found |= self._bring(block for block in missing if block not in found)
        whole = b"".join(found[block] for block in blocks)
        skip = start % BLOCK_BYTES
        return whole[skip : skip + end - start]

    def _bring(self, blocks: Iterable[Block]) -> dict[Block, bytes]:
        """Brings blocks into the cache, and returns those that were not there."""
        mine, others = self.cache.claim(blocks)
        loaded: dict[Block, bytes] = {}
        try:
            self._fetch_sums({path for path, _ in mine})
            runs = _runs(mine)
            for first in range(0, len(runs), RANGES_AT_ONCE):
                group = runs[first : first + RANGES_AT_ONCE]
                for block, data in self._fetch(group).items():
                    self.cache.put(block, data)
                    loaded[block] = data
        except FileNotFoundError as error:
            damaged = DamagedShard(f"{_one_of(mine)} or a file beside it is missing: {AGAIN}")
            self.cache.fail(mine, damaged)
            raise damaged from error
        except BaseException as error:
            self.cache.fail(mine, error)
            raise
        return loaded | {block: future.result() for block, future in others.items()}

    def _fetch(self, runs: list[tuple[str, int, int]]) -> dict[Block, bytes]:
        """Blocks [first, last) of files, compared with their checksums; what differs is asked for
        once more: the way here may have damaged it."""
        parts = [
            (path, first * BLOCK_BYTES, min(last * BLOCK_BYTES, self._size(path)))
            for path, first, last in runs
        ]
        found = {}
        for (path, first, last), data in zip(runs, storage.read_many(parts), strict=True):
            for block in range(first, last):
                at = (block - first) * BLOCK_BYTES
                found[path, block] = data[at : at + BLOCK_BYTES]
        wrong = [block for block, data in found.items() if not self._is_right(block, data)]
        again = [
            (path, at * BLOCK_BYTES, at * BLOCK_BYTES + len(found[path, at])) for path, at in wrong
        ]
        for place, data in zip(wrong, storage.read_many(again), strict=True):
            if not self._is_right(place, data):
                raise DamagedShard(wrong_block(*place, len(data), self.dtype.itemsize))
            found[place] = data
        return found

    def _size(self, path: str) -> int:
        if path in self._numbers:
            return int(self.entries[self._numbers[path]]["tokens"]) * self.dtype.itemsize
        return int(self.entries[self._numbers[path.removesuffix(".mask") + ".bin"]]["tokens"])

    def _is_right(self, block: Block, data: bytes) -> bool:
        path, place = block
        number = self._numbers.get(path)
        if number is None or not self.entries[number].get("sums"):
            return True
        return xxhash.xxh3_64_intdigest(data) == int(self._sums(number)[place])

    def _sums_path(self, number: int) -> Path:
        return self.folder / f"{self.entries[number]['file']}.sums"

    def _fetch_sums(self, paths: Iterable[str]) -> None:
        """Brings the checksums of these files to this machine where they are not yet."""
        numbers = sorted(self._numbers[path] for path in paths if path in self._numbers)
        missing = [
            number
            for number in numbers
            if self.entries[number].get("sums") and not self._sums_path(number).is_file()
        ]
        parts = [
            (f"{self.name(number).removesuffix('.bin')}.sums", 0, self._sums_bytes(number))
            for number in missing
        ]
        for number, data in zip(missing, storage.read_many(parts), strict=True):
            _write(self._sums_path(number), data)

    def _sums_bytes(self, number: int) -> int:
        return sums_bytes(self._size(self.name(number)))

    def _read_sums(self, number: int) -> NDArray[np.uint64]:
        path = self._sums_path(number)
        data = path.read_bytes()
        if len(data) != self._sums_bytes(number):
            raise DamagedShard(wrong_size(path, len(data), self._sums_bytes(number)))
        return np.frombuffer(data, SUM)


def _blocks(path: str, start: int, end: int) -> list[Block]:
    return [(path, n) for n in range(start // BLOCK_BYTES, (end - 1) // BLOCK_BYTES + 1)]


def _one_of(blocks: Sequence[Block]) -> str:
    return min(path for path, _ in blocks)


def _runs(blocks: Iterable[Block]) -> list[tuple[str, int, int]]:
    """(file, first, last + 1) of neighbouring blocks, which are asked for as one range."""
    runs: list[tuple[str, int, int]] = []
    for path, number in sorted(blocks):
        if runs and runs[-1][0] == path and runs[-1][2] == number:
            runs[-1] = path, runs[-1][1], number + 1
        else:
            runs.append((path, number, number + 1))
    return runs


def _write(path: Path, content: bytes) -> None:
    """Writes a file whole or not at all; several processes may."""
    write_atomically(path, lambda file: file.write(content))
