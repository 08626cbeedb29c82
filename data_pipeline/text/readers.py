"""From a unit of work to its rows, format by format.

A row that cannot be used, because it is no JSON, lacks the text or is not UTF-8, is not an error:
it comes out with the flaw in its place, and the caller counts it and keeps it aside. A file that
cannot be read to its end is one.
"""

from __future__ import annotations

import io
import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from conf.errors import InputError
from data_pipeline.store import storage
from data_pipeline.text.corpus import SourceConfig
from data_pipeline.text.units import SourceFile, Unit

BUFFER_BYTES = 1 << 20


class Row(NamedTuple):
    """What stands in a place of a file.

    position: byte offset of the line in plain JSON lines, else the number of the row, from 0.
    line: number of the line or row in its unit, from 0. flaw: why there is no text, else ''; `raw`
    is then what was found. no_loss: ranges of characters that are not trained on.
    """

    file: str
    position: int
    line: int
    text: str
    flaw: str = ""
    raw: str = ""
    no_loss: tuple[tuple[int, int], ...] = ()


def read_unit(unit: Unit, source: SourceConfig) -> Iterator[Row]:
    """The rows of a unit in their order; raises InputError for a file that cannot be read."""
    for file in unit.files:
        try:
            yield from READERS[source.format](file, unit, source)
        except (OSError, ValueError, EOFError) as error:  # of files, pyarrow and datasets
            if isinstance(error, OSError) and error.errno:
                reason = error.strerror
            else:
                reason = str(error).strip().split("\n")[0].rstrip(".")
            raise InputError(
                f"corpus.sources.{unit.source}.paths: {file.path} cannot be read as "
                f"{source.format}: {reason}."
            ) from None


def _read_text(file: SourceFile, unit: Unit, source: SourceConfig) -> Iterator[Row]:
    with _local(file.path) as path:
        raw = Path(path).read_bytes()
    try:
        yield Row(file.name, 0, 0, raw.decode("utf-8"))
    except UnicodeDecodeError as error:
        yield Row(file.name, 0, 0, "", f"not UTF-8 at byte {error.start}", _shown(raw))


def _read_jsonl(file: SourceFile, unit: Unit, source: SourceConfig) -> Iterator[Row]:
    with _local(file.path) as path:
        if file.path.endswith((".gz", ".zst", ".zstd", ".bz2")):
            lines = _compressed_lines(path)
        else:
            lines = _lines_between(path, unit.start, unit.end)
        for number, (position, line) in enumerate(lines):
            if line.isspace():
                continue
            try:
                row = orjson.loads(line)
            except ValueError:
                row, flaw = _parse_slowly(line)
                if flaw:
                    yield Row(file.name, position, number, "", flaw, _shown(line))
                    continue
            text, flaw, no_loss = _fields(row, source)
            yield Row(
                file.name, position, number, text, flaw, _shown(line) if flaw else "", no_loss
            )


def _compressed_lines(path: str) -> Iterator[tuple[int, bytes]]:
    import pyarrow

    # Unlike zstandard's reader, pyarrow's tells a compressed file that is cut off from a whole one.
    with io.BufferedReader(pyarrow.input_stream(path), BUFFER_BYTES) as lines:
        yield from enumerate(lines)


def _lines_between(path: str, start: int, end: int) -> Iterator[tuple[int, bytes]]:
    """The lines that begin in [start, end), with the offsets of their beginnings."""
    with open(path, "rb", buffering=BUFFER_BYTES) as lines:
        position = start
        if start:
            lines.seek(start - 1)
            position += len(lines.readline()) - 1
        for line in lines:
            if position >= end:
                break
            yield position, line
            position += len(line)


def _parse_slowly(line: bytes) -> tuple[Any, str]:
    """A line that the fast parser refused: Python's takes NaN, and says what is wrong."""
    try:
        return json.loads(line.decode("utf-8")), ""
    except UnicodeDecodeError as error:
        return None, f"not UTF-8 at byte {error.start}"
    except ValueError as error:
        return None, f"not JSON ({error})"


def _read_parquet(file: SourceFile, unit: Unit, source: SourceConfig) -> Iterator[Row]:
    import pyarrow.parquet as pq

    columns = [source.text_field] + ([source.no_loss_field] if source.no_loss_field else [])
    with _local(file.path) as path, pq.ParquetFile(path) as table:
        for column in columns:
            if column not in table.schema_arrow.names:
                raise ValueError(_no_column(column, table.schema_arrow.names))
        position = 0
        for batch in table.iter_batches(batch_size=1024, columns=columns):
            for row in _rows_of(batch, columns):
                text, flaw, no_loss = _fields(row, source)
                raw = _shown(repr(row).encode()) if flaw else ""
                yield Row(file.name, position, position, text, flaw, raw, no_loss)
                position += 1


def _rows_of(batch: Any, columns: list[str]) -> Iterator[dict[str, Any]]:
    """Rows of a record batch. A string that is not UTF-8 becomes its bytes: one of them must not
    take the rest of the file with it."""
    values = []
    for column in columns:
        array = batch.column(column)
        try:
            values.append(array.to_pylist())
        except UnicodeDecodeError:
            kind = "large_binary" if str(array.type).startswith("large") else "binary"
            values.append([_decoded(raw) for raw in array.view(kind).to_pylist()])
    for row in zip(*values, strict=True):
        yield dict(zip(columns, row, strict=True))


def _decoded(raw: bytes | None) -> str | bytes | None:
    try:
        return None if raw is None else raw.decode("utf-8")
    except UnicodeDecodeError:
        return raw


def _read_huggingface(file: SourceFile, unit: Unit, source: SourceConfig) -> Iterator[Row]:
    from datasets import load_dataset

    rows = load_dataset(file.path, source.subset, split=source.split, streaming=True)
    taken = 0
    for position, row in enumerate(rows):
        text, flaw, no_loss = _fields(row, source)
        yield (
            Row(file.name, position, position, text, flaw, _shown(repr(row).encode()), no_loss)
            if flaw
            else Row(file.name, position, position, text, no_loss=no_loss)
        )
        taken += len(text)
        if source.max_bytes and taken >= source.max_bytes:
            break


Reader = Callable[[SourceFile, Unit, SourceConfig], Iterator[Row]]
READERS: dict[str, Reader] = {
    "text": _read_text,
    "jsonl": _read_jsonl,
    "parquet": _read_parquet,
    "huggingface": _read_huggingface,
}


@contextmanager
def _local(path: str) -> Iterator[str]:
    """A path to read from: the file itself, or a copy of a remote one that goes afterwards."""
    if not storage.is_remote(path):
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="headwater-") as folder:
        copy = Path(folder) / "file"
        storage.fetch(path, copy)
        # Formats are told by the ending.
        named = copy.with_name("file" + "".join(Path(path).suffixes[-2:]))
        yield str(copy.rename(named))


def _fields(row: Any, source: SourceConfig) -> tuple[str, str, tuple[tuple[int, int], ...]]:
    """(text, flaw, ranges without loss) of a row; null is an empty text."""
    if not isinstance(row, dict) or source.text_field not in row:
        names = list(islice(row, 20)) if isinstance(row, dict) else []
        return "", _no_column(source.text_field, names), ()
    text = row[source.text_field]
    if text is None:
        return "", "", ()
    if not isinstance(text, str):
        if isinstance(text, bytes):
            return "", "not UTF-8", ()
        return "", f"'{source.text_field}' is {type(text).__name__}, expected text", ()
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            return "", "an escape such as \\ud800 alone is no Unicode", ()
    if source.no_loss_field is None:
        return text, "", ()
    return _with_no_loss(text, row.get(source.no_loss_field), source.no_loss_field)


def _with_no_loss(
    text: str, found: Any, column: str
) -> tuple[str, str, tuple[tuple[int, int], ...]]:
    try:
        ranges = tuple((int(start), int(end)) for start, end in found or ())
    except (TypeError, ValueError):
        ranges = ((1, 0),)
    if any(not 0 <= start <= end <= len(text) for start, end in ranges):
        flaw = f"'{column}' is {str(found)[:40]}, expected [start, end) pairs inside the text"
        return "", flaw, ()
    return text, "", tuple((start, end) for start, end in ranges if start < end)


def _no_column(column: str, names: list[str]) -> str:
    return f"no column '{column}' (columns: {', '.join(names) or 'none'}); set it on the source"


def _shown(raw: bytes) -> str:
    """The beginning of what was found, for the file of malformed rows."""
    return raw[:2000].decode("utf-8", "replace").rstrip("\n")
