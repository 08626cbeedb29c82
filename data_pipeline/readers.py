"""From files to documents, format by format. Work is cut into units that are read alone.

A unit is what one process reads at a time: some text files, or one file of rows. The cut depends
on the corpus alone, never on the number of processes, so that the output is the same for any.
"""

from __future__ import annotations

import fnmatch
import glob
import gzip
import hashlib
import io
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from conf.errors import InputError
from data_pipeline.corpus import CorpusConfig, SourceConfig

Row = tuple[int, str | None]
"""Position in the file and the text; None where it is not UTF-8."""


@dataclass(frozen=True)
class SourceFile:
    """path: where it is; name: its path inside the source's folder, the file's identity."""

    path: str
    name: str
    bytes: int
    mtime_ns: int


@dataclass(frozen=True)
class Unit:
    """Files of a source that are read together; number counts within the source."""

    source: str
    number: int
    files: tuple[SourceFile, ...]


def plan_units(corpus: CorpusConfig) -> list[Unit]:
    """All units of a corpus; raises InputError for a path that is missing or holds nothing."""
    units = []
    for name, source in corpus.sources.items():
        files = list_files(name, source, corpus.seed)
        groups: list[list[SourceFile]] = [[]]
        for file in files:
            rows = source.format != "text"
            full = sum(f.bytes for f in groups[-1]) + file.bytes > corpus.shard_bytes
            if groups[-1] and (rows or full):
                groups.append([])
            groups[-1].append(file)
        units += [Unit(name, number, tuple(group)) for number, group in enumerate(groups)]
    return units


def list_files(name: str, source: SourceConfig, seed: int) -> list[SourceFile]:
    """The files of a source in the order of a keyed hash of their names: documents that lie
    together on disk, as whole sites or packages do, are spread over the stream."""
    key = f"corpus.sources.{name}.paths"
    found: list[SourceFile] = []
    for pattern in source.paths:
        if source.format == "huggingface":
            found.append(SourceFile(pattern, pattern, 0, 0))
            continue
        matches = sorted(glob.glob(pattern, recursive=True))
        if not matches:
            raise InputError(f"{key}: {pattern} does not exist, expected a file, folder or glob.")
        inside = [file for match in matches for file in _walk(Path(match), source)]
        if not inside:
            raise InputError(
                f"{key}: {pattern} holds no file"
                f"{' ending in ' + ' '.join(source.suffixes) if source.suffixes else ''} that is "
                "not empty or excluded."
            )
        found += inside
    found.sort(key=lambda f: (hashlib.sha256(f"{seed}:{f.name}".encode()).digest(), f.path))
    if not source.max_bytes:
        return found
    taken, total = [], 0
    for file in found:
        if total >= source.max_bytes:
            break
        taken.append(file)
        total += file.bytes
    return taken


def _walk(root: Path, source: SourceConfig) -> Iterator[SourceFile]:
    """Files under a folder, or a file itself, that the source's rules let in."""
    for path in [str(root)] if root.is_file() else _files_under(str(root)):
        name = os.path.relpath(path, root) if path != str(root) else root.name
        if path != str(root) and not path.endswith(tuple(source.suffixes) or ""):
            continue
        if any(fnmatch.fnmatch(name, pattern) for pattern in source.exclude):
            continue
        about = os.stat(path)
        too_large = source.max_file_bytes and about.st_size > source.max_file_bytes
        if about.st_size >= source.min_file_bytes and not too_large:
            yield SourceFile(path, name, about.st_size, about.st_mtime_ns)


def _files_under(root: str) -> Iterator[str]:
    for folder, _, files in os.walk(root):
        for file in files:
            yield os.path.join(folder, file)


def read_unit(unit: Unit, source: SourceConfig) -> Iterator[tuple[str, int, str | None]]:
    """(file name, position, text) of every document of a unit; text is None where the bytes are
    not UTF-8. Raises InputError for a row that is not what the config says."""
    for file in unit.files:
        for position, text in READERS[source.format](file, source):
            yield file.name, position, text


def _read_text(file: SourceFile, source: SourceConfig) -> Iterator[Row]:
    yield 0, _decode(Path(file.path).read_bytes())


def _read_jsonl(file: SourceFile, source: SourceConfig) -> Iterator[Row]:
    with _open(Path(file.path)) as lines:
        for position, line in enumerate(lines):
            text = _decode(line)
            if text is None or not text.strip():
                if text is None:
                    yield position, None
                continue
            try:
                row = json.loads(text)
            except ValueError as error:
                raise InputError(f"{file.path}, line {position + 1}: not JSON ({error}).") from None
            yield position, _field(row, file, position, source)


def _read_parquet(file: SourceFile, source: SourceConfig) -> Iterator[Row]:
    import pyarrow.parquet as pq

    table = pq.ParquetFile(file.path)
    if source.text_field not in table.schema_arrow.names:
        raise InputError(_no_field(file, source, table.schema_arrow.names))
    position = 0
    for batch in table.iter_batches(columns=[source.text_field]):
        for text in batch.column(0).to_pylist():
            yield position, text or ""
            position += 1


def _read_huggingface(file: SourceFile, source: SourceConfig) -> Iterator[Row]:
    from datasets import load_dataset

    rows = load_dataset(file.path, source.subset, split=source.split, streaming=True)
    for position, row in enumerate(rows):
        yield position, _field(row, file, position, source)


READERS: dict[str, Callable[[SourceFile, SourceConfig], Iterator[Row]]] = {
    "text": _read_text,
    "jsonl": _read_jsonl,
    "parquet": _read_parquet,
    "huggingface": _read_huggingface,
}


def _open(path: Path) -> IO[bytes]:
    if path.suffix == ".gz":
        return gzip.open(path, "rb")  # type: ignore[return-value]
    if path.suffix == ".zst":
        import zstandard

        return io.BufferedReader(zstandard.ZstdDecompressor().stream_reader(path.open("rb")))
    return path.open("rb")


def _decode(raw: bytes) -> str | None:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return None


def _field(row: Any, file: SourceFile, position: int, source: SourceConfig) -> str:
    if not isinstance(row, dict) or not isinstance(row.get(source.text_field), str):
        names = list(row) if isinstance(row, dict) else []
        raise InputError(f"row {position + 1} of " + _no_field(file, source, names))
    return row[source.text_field]


def _no_field(file: SourceFile, source: SourceConfig, names: list[str]) -> str:
    return (
        f"{file.path} has no text in the column '{source.text_field}' (columns: "
        f"{', '.join(names) or 'none'}): set text_field of its source."
    )
