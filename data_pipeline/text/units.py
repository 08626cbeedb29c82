"""Divides a corpus into units of work, each of which is processed by one process.

A unit is a group of text files, one file of rows, or a byte range of a large file of plain JSON
lines. Units, and therefore the output, depend only on the corpus and not on the number of
processes.
"""

from __future__ import annotations

import fnmatch
import glob
import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from conf.errors import InputError
from conf.folders import expand, files_under
from conf.text_files import COMPRESSED
from data_pipeline.store import storage
from data_pipeline.text.corpus import CorpusConfig, SourceConfig


@dataclass(frozen=True)
class SourceFile:
    """A file of a source.

    Attributes:
        path: local path or URL.
        name: path inside the source's folder, which identifies the file.
        bytes: size of the file.
        version: modification time of a local file, version or ETag of a remote file, or newest
            modification time in the local folder of a Hugging Face dataset.
    """

    path: str
    name: str
    bytes: int
    version: str


@dataclass(frozen=True)
class Unit:
    """Files of a source that are read together.

    Attributes:
        id: number of the unit in the corpus.
        source: name of the source.
        number: number of the unit in its source.
        files: the files to read.
        start, end: byte range of a file of plain JSON lines that the unit covers. A line belongs to
            the unit in whose range it begins.
    """

    id: int
    source: str
    number: int
    files: tuple[SourceFile, ...]
    start: int = 0
    end: int = 1 << 62

    @property
    def bytes(self) -> int:
        """Number of bytes that are read for the unit."""
        return min(sum(file.bytes for file in self.files), self.end) - self.start


def plan_units(
    corpus: CorpusConfig, is_read: Callable[[str, SourceFile], bool] | None = None
) -> list[Unit]:
    """Returns all units of a corpus. Raises InputError if a path has no files.

    Files for which `is_read(source, file)` is true are left out.
    """
    units: list[Unit] = []
    for name, source in corpus.sources.items():
        files = list_files(name, source, corpus.seed)
        if is_read is not None:
            files = [file for file in files if not is_read(name, file)]
        for number, part in enumerate(_parts(files, source, corpus.shard_bytes)):
            units.append(Unit(len(units), name, number, *part))
    return units


def _parts(
    files: list[SourceFile], source: SourceConfig, shard_bytes: int
) -> Iterator[tuple[tuple[SourceFile, ...], int, int]]:
    whole = 1 << 62
    if source.format == "text":
        group: list[SourceFile] = []
        size = 0
        for file in files:
            size += file.bytes
            if group and size > shard_bytes:
                yield tuple(group), 0, whole
                group, size = [], file.bytes
            group.append(file)
        if group:
            yield tuple(group), 0, whole
        return
    for file in files:
        plain = source.format == "jsonl" and not file.path.endswith(COMPRESSED)
        # Remote files are downloaded whole, so they are not divided.
        count = 1
        if plain and not storage.is_remote(file.path):
            count = max(1, round(file.bytes / shard_bytes))
        bounds = [file.bytes * part // count for part in range(count)] + [whole]
        for part in range(count):
            yield (file,), bounds[part], bounds[part + 1]


def list_files(name: str, source: SourceConfig, seed: int) -> list[SourceFile]:
    """Returns the files of a source, sorted by a keyed hash of their names.

    This order separates files that are stored together, such as those of one site or package.
    Raises InputError if a path has no files.
    """
    key = f"corpus.sources.{name}.paths"
    found: list[SourceFile] = []
    for pattern in source.paths:
        if source.format == "huggingface":
            found.append(_dataset(pattern))
            continue
        lister = _remote_files if storage.is_remote(pattern) else _local_files
        seen, inside = lister(pattern, source)
        if not seen:
            raise InputError(f"{key}: {pattern} does not exist. Give a file, folder or glob.")
        if not inside:
            raise InputError(
                f"{key}: {pattern} has no usable files. They must not be empty or excluded"
                f"{', and must end in ' + ' or '.join(source.suffixes) if source.suffixes else ''}."
            )
        found += inside
    found = list({file.path: file for file in found}.values())  # patterns may overlap
    found.sort(key=lambda f: (name_hash(f"{seed}:{f.name}"), f.path))
    if not source.max_bytes or source.format == "huggingface":
        return found
    taken, total = [], 0
    for file in found:
        if total >= source.max_bytes:
            break
        taken.append(file)
        total += file.bytes
    return taken


def name_hash(name: str) -> bytes:
    """Returns the sha256 of a name, which need not be UTF-8."""
    return hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()


def _local_files(pattern: str, source: SourceConfig) -> tuple[bool, list[SourceFile]]:
    """Returns True if the pattern matches anything, and the files that the source selects."""
    matches = expand(pattern)
    root = _fixed_part(pattern)
    found: list[SourceFile] = []
    broken: list[str] = []
    for match in matches:
        # The name of a file is its path inside the folder, or its path below the fixed part of the
        # pattern if the pattern matches the file itself. So a/x.txt and b/x.txt differ in name.
        folder = os.path.isdir(match)
        start = len(os.path.join(match, "")) if folder else len(root)
        for path in files_under(match) if folder else [match]:
            name = path[start:]
            if os.path.isfile(path):  # skips pipes and broken links
                stat = os.stat(path)
                if _is_selected(name, stat.st_size, folder, source):
                    found.append(SourceFile(path, name, stat.st_size, str(stat.st_mtime_ns)))
            elif os.path.islink(path) and not _excluded(name, source):
                broken.append(path)
    if broken:
        more = f" and {len(broken) - 1} more" if broken[1:] else ""
        print(
            f"warning: skipped the broken link {min(broken)}{more}. Restore the target, or remove "
            "the link.",
            flush=True,
        )
    return bool(matches), found


def _remote_files(pattern: str, source: SourceConfig) -> tuple[bool, list[SourceFile]]:
    listed = storage.list_files(pattern)
    folder = not any(path == pattern for path, *_ in listed) and not glob.has_magic(pattern)
    root = pattern.rstrip("/") + "/" if folder else _fixed_part(pattern)
    files = [
        SourceFile(path, path[len(root) :], size, str(version))
        for path, size, version in sorted(listed)
        if _is_selected(path[len(root) :], size, folder, source)
    ]
    return bool(listed), files


def _fixed_part(pattern: str) -> str:
    """Returns the folder that precedes the first wildcard of a pattern, with a trailing slash."""
    parts = pattern.split("/")
    fixed = next((n for n, part in enumerate(parts) if glob.has_magic(part)), len(parts) - 1)
    return "/".join([*parts[:fixed], ""])


def _is_selected(name: str, size: int, in_folder: bool, source: SourceConfig) -> bool:
    if in_folder and not name.endswith(tuple(source.suffixes) or ""):
        return False
    if _excluded(name, source):
        return False
    too_large = source.max_file_bytes and size > source.max_file_bytes
    return size >= max(1, source.min_file_bytes) and not too_large


def _excluded(name: str, source: SourceConfig) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in source.exclude)


def _dataset(path: str) -> SourceFile:
    files = files_under(path) if os.path.isdir(path) else ()  # otherwise a name on the Hub
    stats = [os.stat(file) for file in files if os.path.isfile(file)]
    newest = max((file.st_mtime_ns for file in stats), default=0)
    return SourceFile(path, path, sum(file.st_size for file in stats), str(newest))
