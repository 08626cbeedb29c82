"""From files to documents, format by format. Work is cut into units that are read alone.

A unit is what one process reads at a time: some text files, or one file of rows. The cut depends
on the corpus alone, never on the number of processes, so that the output is the same for any.
"""

from __future__ import annotations

import fnmatch
import glob
import hashlib
import io
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from conf.errors import InputError
from data_pipeline.corpus import CorpusConfig, SourceConfig

Row = tuple[int, str | None]
"""Position in the file and the text; None where it is not UTF-8."""
BUFFER_BYTES = 1 << 20


@dataclass(frozen=True)
class SourceFile:
    """path: where it is; name: its path inside the source's folder, the file's identity.

    bytes and mtime_ns are those of the file; of a local folder of a Hugging Face dataset, all its
    bytes and its newest time; 0 of a dataset on the hub.
    """

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
        groups: list[list[SourceFile]] = []
        size = 0
        for file in files:
            size += file.bytes
            if not groups or source.format != "text" or size > corpus.shard_bytes:
                groups.append([])
                size = file.bytes
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
            found.append(_dataset(pattern))
            continue
        matches = sorted(glob.glob(pattern, recursive=True))
        if not matches:
            raise InputError(f"{key}: {pattern} does not exist, expected a file, folder or glob.")
        inside = [file for match in matches for file in _walk(match, source)]
        if not inside:
            raise InputError(
                f"{key}: {pattern} holds no file"
                f"{' ending in ' + ' '.join(source.suffixes) if source.suffixes else ''} that is "
                "not empty or excluded."
            )
        found += inside
    found = list({file.path: file for file in found}.values())  # patterns may overlap
    found.sort(key=lambda f: (name_hash(f"{seed}:{f.name}"), f.path))
    if not source.max_bytes:
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


def _walk(root: str, source: SourceConfig) -> Iterator[SourceFile]:
    """Files under a folder, or a file itself, that the source's rules let in."""
    folder = os.path.isdir(root)
    suffixes = tuple(source.suffixes) or ""
    start = len(os.path.join(root, ""))
    for path in _files_under(root) if folder else [root]:
        name = path[start:] if folder else os.path.basename(root)
        if folder and not name.endswith(suffixes):
            continue
        if any(fnmatch.fnmatchcase(name, pattern) for pattern in source.exclude):
            continue
        if not os.path.isfile(path):  # a pipe, or a link that leads nowhere
            continue
        about = os.stat(path)
        too_large = source.max_file_bytes and about.st_size > source.max_file_bytes
        if about.st_size >= source.min_file_bytes and not too_large:
            yield SourceFile(path, name, about.st_size, about.st_mtime_ns)


def _files_under(root: str) -> Iterator[str]:
    for folder, _, files in os.walk(root):
        prefix = os.path.join(folder, "")
        for file in files:
            yield prefix + file


def _dataset(path: str) -> SourceFile:
    about = [os.stat(file) for file in _files_under(path) if os.path.isfile(file)]
    newest = max((file.st_mtime_ns for file in about), default=0)
    return SourceFile(path, path, sum(file.st_size for file in about), newest)


def read_unit(unit: Unit, source: SourceConfig) -> Iterator[tuple[str, int, str | None]]:
    """(file name, position, text) of every document of a unit; text is None where the bytes are
    not UTF-8. Raises InputError for a file or row that is not what the config says."""
    for file in unit.files:
        try:
            for position, text in READERS[source.format](file, source):
                yield file.name, position, text
        except (OSError, ValueError) as error:  # what files, pyarrow, json and datasets raise
            reason = str(error).strip().split("\n")[0].rstrip(".")
            raise InputError(
                f"corpus.sources.{unit.source}.paths: {file.path} cannot be read as "
                f"{source.format}: {reason}."
            ) from None


def _read_text(file: SourceFile, source: SourceConfig) -> Iterator[Row]:
    yield 0, _decode(Path(file.path).read_bytes())


def _read_jsonl(file: SourceFile, source: SourceConfig) -> Iterator[Row]:
    import pyarrow

    # Unlike zstandard's reader, pyarrow's tells a compressed file that is cut off from a whole one.
    with io.BufferedReader(pyarrow.input_stream(file.path), BUFFER_BYTES) as lines:
        for position, line in enumerate(lines):
            text = _decode(line)
            if text is None:
                yield position, None
            elif text.strip():
                try:
                    row = json.loads(text)
                except ValueError as error:
                    raise ValueError(f"line {position + 1} is not JSON ({error})") from None
                yield position, _field(row, position, source)


def _read_parquet(file: SourceFile, source: SourceConfig) -> Iterator[Row]:
    import pyarrow.parquet as pq

    table = pq.ParquetFile(file.path)
    if source.text_field not in table.schema_arrow.names:
        raise ValueError(_no_field(source, table.schema_arrow.names))
    position = 0
    for batch in table.iter_batches(columns=[source.text_field]):
        for text in batch.column(0).to_pylist():
            yield position, _field({source.text_field: text}, position, source)
            position += 1


def _read_huggingface(file: SourceFile, source: SourceConfig) -> Iterator[Row]:
    from datasets import load_dataset

    rows = load_dataset(file.path, source.subset, split=source.split, streaming=True)
    for position, row in enumerate(rows):
        yield position, _field(row, position, source)


READERS: dict[str, Callable[[SourceFile, SourceConfig], Iterator[Row]]] = {
    "text": _read_text,
    "jsonl": _read_jsonl,
    "parquet": _read_parquet,
    "huggingface": _read_huggingface,
}


def _decode(raw: bytes) -> str | None:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return None


def _field(row: Any, position: int, source: SourceConfig) -> str | None:
    """The text of a row, '' for null, None where an escape such as \\ud800 alone is no Unicode."""
    if not isinstance(row, dict) or source.text_field not in row:
        names = list(row) if isinstance(row, dict) else []
        raise ValueError(f"row {position + 1}: {_no_field(source, names)}")
    text = row[source.text_field]
    if text is None:
        return ""
    if not isinstance(text, str):
        raise ValueError(
            f"row {position + 1} has {type(text).__name__} in '{source.text_field}', expected text"
        )
    try:
        text.encode()
    except UnicodeEncodeError:
        return None
    return text


def _no_field(source: SourceConfig, names: list[str]) -> str:
    return (
        f"there is no column '{source.text_field}' (columns: {', '.join(names) or 'none'}), set "
        "text_field of the source"
    )
