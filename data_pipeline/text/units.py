"""The cut of a corpus into units of work: what one process reads at a time.

A unit is some text files, one file of rows, or a part of a large file of plain JSON lines. The cut
depends on the corpus alone, never on the number of processes, so that the output is the same for
any.
"""

from __future__ import annotations

import fnmatch
import glob
import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass

from conf.errors import InputError
from conf.folders import expand, files_under
from conf.text_files import COMPRESSED
from data_pipeline.store import storage
from data_pipeline.text.corpus import CorpusConfig, SourceConfig


@dataclass(frozen=True)
class SourceFile:
    """path: where it is, a URL if it is remote; name: its path inside the source's folder, the
    file's identity. version: time of a local file, of a remote one what its store says changes
    with it; of a local folder of a Hugging Face dataset the newest time of its files.
    """

    path: str
    name: str
    bytes: int
    version: str


@dataclass(frozen=True)
class Unit:
    """Files of a source that are read together; number counts within the source, id over all.

    start, end: of a file of plain JSON lines, the bytes in which the unit's lines begin.
    """

    id: int
    source: str
    number: int
    files: tuple[SourceFile, ...]
    start: int = 0
    end: int = 1 << 62

    @property
    def bytes(self) -> int:
        """Size of what is read."""
        return min(sum(file.bytes for file in self.files), self.end - self.start)


def plan_units(corpus: CorpusConfig) -> list[Unit]:
    """All units of a corpus; raises InputError for a path that is missing or holds nothing."""
    units: list[Unit] = []
    for name, source in corpus.sources.items():
        files = list_files(name, source, corpus.seed)
        for number, part in enumerate(_parts(files, source, corpus.shard_bytes)):
            units.append(Unit(len(units), name, number, *part))
    return units


def _parts(
    files: list[SourceFile], source: SourceConfig, most_bytes: int
) -> Iterator[tuple[tuple[SourceFile, ...], int, int]]:
    whole = 1 << 62
    if source.format == "text":
        group: list[SourceFile] = []
        size = 0
        for file in files:
            size += file.bytes
            if group and size > most_bytes:
                yield tuple(group), 0, whole
                group, size = [], file.bytes
            group.append(file)
        if group:
            yield tuple(group), 0, whole
        return
    for file in files:
        plain = source.format == "jsonl" and not file.path.endswith(COMPRESSED)
        # A part of a remote file would be fetched with all the others.
        count = 1
        if plain and not storage.is_remote(file.path):
            count = max(1, round(file.bytes / most_bytes))
        borders = [file.bytes * part // count for part in range(count)] + [whole]
        for part in range(count):
            yield (file,), borders[part], borders[part + 1]


def list_files(name: str, source: SourceConfig, seed: int) -> list[SourceFile]:
    """The files of a source in the order of a keyed hash of their names: documents that lie
    together on disk, as whole sites or packages do, are spread over the stream."""
    key = f"corpus.sources.{name}.paths"
    found: list[SourceFile] = []
    for pattern in source.paths:
        if source.format == "huggingface":
            found.append(_dataset(pattern))
            continue
        lister = _remote_files if storage.is_remote(pattern) else _local_files
        seen, inside = lister(pattern, source)
        if not seen:
            raise InputError(f"{key}: {pattern} does not exist, expected a file, folder or glob.")
        if not inside:
            raise InputError(
                f"{key}: {pattern} holds no file"
                f"{' ending in ' + ' '.join(source.suffixes) if source.suffixes else ''} that is "
                "not empty or excluded."
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
    """sha256 of a name; file names need not be UTF-8."""
    return hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()


def _local_files(pattern: str, source: SourceConfig) -> tuple[bool, list[SourceFile]]:
    """Whether anything is there, and the files that the source's rules let in."""
    matches = expand(pattern)
    root = _fixed_part(pattern)
    found: list[SourceFile] = []
    dead: list[str] = []
    for match in matches:
        # Files under a folder are named by their path in it; a file itself by its path below the
        # fixed part of the pattern, so that a/x.txt and b/x.txt of one glob have different names.
        folder = os.path.isdir(match)
        start = len(os.path.join(match, "")) if folder else len(root)
        for path in files_under(match) if folder else [match]:
            name = path[start:]
            if os.path.isfile(path):  # and not a pipe
                about = os.stat(path)
                if _let_in(name, about.st_size, folder, source):
                    found.append(SourceFile(path, name, about.st_size, str(about.st_mtime_ns)))
            elif os.path.islink(path) and not _excluded(name, source):
                dead.append(path)
    if dead:
        more = f" and {len(dead) - 1} more" if dead[1:] else ""
        print(
            f"warning: left out {min(dead)}{more}: the link leads nowhere. Restore what it leads "
            "to, or remove the link.",
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
        if _let_in(path[len(root) :], size, folder, source)
    ]
    return bool(listed), files


def _fixed_part(pattern: str) -> str:
    """The folder before the first wildcard, with its slash."""
    parts = pattern.split("/")
    fixed = next((n for n, part in enumerate(parts) if glob.has_magic(part)), len(parts) - 1)
    return "/".join([*parts[:fixed], ""])


def _let_in(name: str, size: int, in_folder: bool, source: SourceConfig) -> bool:
    if in_folder and not name.endswith(tuple(source.suffixes) or ""):
        return False
    if _excluded(name, source):
        return False
    too_large = source.max_file_bytes and size > source.max_file_bytes
    return size >= max(1, source.min_file_bytes) and not too_large


def _excluded(name: str, source: SourceConfig) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in source.exclude)


def _dataset(path: str) -> SourceFile:
    files = files_under(path) if os.path.isdir(path) else ()  # a name on the Hub
    about = [os.stat(file) for file in files if os.path.isfile(file)]
    newest = max((file.st_mtime_ns for file in about), default=0)
    return SourceFile(path, path, sum(file.st_size for file in about), str(newest))
