"""Reads the rows of a unit of work, with one reader per file format.

A row that cannot be used, because it is not valid JSON or UTF-8 or has no text, does not raise an
error. It is yielded with a description of its flaw, and the caller counts and reports it. A file
that cannot be read to its end raises InputError.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import orjson

from conf.errors import InputError, first_line
from conf.text_files import COMPRESSED, check_json_lines, open_text, other_kind, without_mark
from data_pipeline.store import storage
from data_pipeline.text.archives import read_pages
from data_pipeline.text.corpus import SourceConfig
from data_pipeline.text.hub import dataset_rows
from data_pipeline.text.units import SourceFile, Unit

HEAD_BYTES = 1 << 12
"""Number of bytes at the beginning of a file that are read to check if it holds JSON lines."""


class Row(NamedTuple):
    """One row of a file, which is a document unless it has a flaw.

    Attributes:
        file: name of the file.
        position: byte offset of the line in a file of plain JSON lines, else number of the row, or
            of the record of a web archive, in the file, counted from 0.
        line: number of the line or row in its unit, counted from 0.
        text: text of the document.
        flaw: reason why the row cannot be used, or ''.
        raw: beginning of the row's content if it has a flaw, else ''.
        no_loss: [start, end) ranges of characters that are not trained on.
        url: URL of the document, or '' if it has none or the source has no `url_field`.
    """

    file: str
    position: int
    line: int
    text: str
    flaw: str = ""
    raw: str = ""
    no_loss: tuple[tuple[int, int], ...] = ()
    url: str = ""


def read_unit(unit: Unit, source: SourceConfig) -> Iterator[Row]:
    """Yields the rows of a unit in order. Raises InputError if a file cannot be read."""
    for file in unit.files:
        try:
            yield from READERS[source.format](file, unit, source)
        except (OSError, ValueError, EOFError) as error:  # raised by files, pyarrow and datasets
            if isinstance(error, OSError) and error.errno:
                reason = error.strerror
            else:
                reason = first_line(error)
            raise InputError(
                f"corpus.sources.{unit.source}.paths: {file.path} cannot be read as "
                f"{source.format}: {reason}."
            ) from None


def _read_text(file: SourceFile, unit: Unit, source: SourceConfig) -> Iterator[Row]:
    with _local(file.path) as path:
        raw = Path(path).read_bytes()
    kind = other_kind(raw)
    if kind:
        yield Row(file.name, 0, 0, "", f"expected UTF-8 text, found {kind}", _shown(raw))
        return
    try:
        yield Row(file.name, 0, 0, without_mark(raw).decode("utf-8"))
    except UnicodeDecodeError as error:
        yield Row(file.name, 0, 0, "", f"invalid UTF-8 at byte {error.start}", _shown(raw))


def _read_jsonl(file: SourceFile, unit: Unit, source: SourceConfig) -> Iterator[Row]:
    with _local(file.path) as path, open_text(path) as lines:
        check_json_lines(lines.peek(HEAD_BYTES)[:HEAD_BYTES])
        compressed = file.path.endswith(COMPRESSED)
        placed = enumerate(lines) if compressed else _lines_between(lines, unit.start, unit.end)
        for number, (position, line) in enumerate(placed):
            line = without_mark(line)
            if not line.strip():
                continue
            try:
                row = orjson.loads(line)
            except ValueError:
                row, flaw = _parse_slowly(line)
                if flaw:
                    yield Row(file.name, position, number, "", flaw, _shown(line))
                    continue
            yield _row(file, position, number, row, source, line)


def _lines_between(lines: BinaryIO, start: int, end: int) -> Iterator[tuple[int, bytes]]:
    """Yields the lines that begin in [start, end), each with its byte offset."""
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
    """Parses a line that orjson has rejected. Uses the standard parser, which also accepts NaN."""
    try:
        return json.loads(line.decode("utf-8")), ""
    except UnicodeDecodeError as error:
        return None, f"invalid UTF-8 at byte {error.start}"
    except ValueError as error:
        return None, f"invalid JSON ({error})"


def _read_parquet(file: SourceFile, unit: Unit, source: SourceConfig) -> Iterator[Row]:
    import pyarrow.parquet as pq

    with _local(file.path) as path, pq.ParquetFile(path) as table:
        names = table.schema_arrow.names
        columns = [source.text_field] + ([source.no_loss_field] if source.no_loss_field else [])
        if source.url_field and source.url_field in names:
            columns.append(source.url_field)
        elif source.url_field:
            columns.append(source.url_field.partition(".")[0])
        for column in columns:
            if column not in names:
                raise ValueError(_no_column(column, names))
            if names.count(column) > 1:
                raise ValueError(
                    f"{names.count(column)} columns are named '{column}'. Rename all but one"
                )
        _check_text_type(source.text_field, table.schema_arrow.field(source.text_field).type)
        position = 0
        for batch in table.iter_batches(batch_size=1024, columns=columns):
            for content in _rows_of(batch, columns):
                yield _row(file, position, position, content, source)
                position += 1


def _check_text_type(column: str, found: Any) -> None:
    """Raises ValueError if a column does not have a type that can hold text.

    Bytes are accepted, because some writers do not mark text as UTF-8. Columns that contain only
    nulls are accepted, too.
    """
    import pyarrow.types as kinds

    kind = getattr(found, "storage_type", found)
    if kinds.is_dictionary(kind):
        kind = kind.value_type
    texts = (kinds.is_string, kinds.is_large_string, kinds.is_string_view)
    bytes_ = (kinds.is_binary, kinds.is_large_binary, kinds.is_binary_view)
    others = (kinds.is_fixed_size_binary, kinds.is_null)
    if not any(is_kind(kind) for is_kind in (*texts, *bytes_, *others)):
        raise ValueError(
            f"expected text in the column '{column}', found {found}. Set text_field of the source "
            "to a column with text"
        )


def _rows_of(batch: Any, columns: list[str]) -> Iterator[dict[str, Any]]:
    """Yields the rows of a record batch, with bytes in a column if any of its strings is not UTF-8.

    Otherwise a single invalid string would make the rest of the file unreadable.
    """
    import pyarrow as pa

    values = []
    for column in columns:
        array = batch.column(column)
        try:
            values.append(array.to_pylist())
        except UnicodeDecodeError:
            values.append(array.cast(pa.large_binary()).to_pylist())
    for row in zip(*values, strict=True):
        yield dict(zip(columns, row, strict=True))


def _read_huggingface(file: SourceFile, unit: Unit, source: SourceConfig) -> Iterator[Row]:
    taken = 0
    for position, content in enumerate(dataset_rows(file.path, source.subset, source.split)):
        row = _row(file, position, position, content, source)
        yield row
        taken += len(row.text)
        if source.max_bytes and taken >= source.max_bytes:
            break


def _read_archive(file: SourceFile, unit: Unit, source: SourceConfig) -> Iterator[Row]:
    with _local(file.path) as path:
        pages = read_pages(path, is_html=source.format == "warc")
        for line, (record, columns, flaw) in enumerate(pages):
            if flaw:
                yield Row(file.name, record, line, "", flaw, _shown(str(columns["url"]).encode()))
            else:
                yield _row(file, record, line, columns, source)


Reader = Callable[[SourceFile, Unit, SourceConfig], Iterator[Row]]
READERS: dict[str, Reader] = {
    "text": _read_text,
    "jsonl": _read_jsonl,
    "parquet": _read_parquet,
    "huggingface": _read_huggingface,
    "warc": _read_archive,
    "wet": _read_archive,
}


@contextmanager
def _local(path: str) -> Iterator[str]:
    """Yields the path of a local file, or of a temporary copy of a remote file."""
    if not storage.is_remote(path):
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="headwater-") as folder:
        copy = Path(folder) / "file"
        storage.fetch(path, copy)
        # The copy keeps its file extension, from which the compression is detected.
        named = copy.with_name("file" + "".join(Path(path).suffixes[-2:]))
        yield str(copy.rename(named))


def _row(
    file: SourceFile,
    position: int,
    line: int,
    content: Any,
    source: SourceConfig,
    raw: bytes | None = None,
) -> Row:
    """Returns the row with this content, whose bytes in the file are `raw` if they are known."""
    text, flaw, no_loss = _fields(content, source)
    url = ""
    if source.url_column and not flaw:
        url, flaw = _url(content, source.url_column)
    shown = _shown(repr(content).encode() if raw is None else raw) if flaw else ""
    return Row(file.name, position, line, "" if flaw else text, flaw, shown, no_loss, url)


def _url(row: dict[str, Any], column: str) -> tuple[str, str]:
    """Returns (URL, flaw) of a row. The URL is '' if it is null."""
    found: Any = row
    for name in [column] if column in row else column.split("."):
        if found is None:  # an object that is null
            break
        if not isinstance(found, dict) or name not in found:
            return "", _no_column(column, list(islice(row, 20)))
        found = found[name]
    if isinstance(found, bytes):
        found = found.decode("utf-8", "replace")
    if not isinstance(found, str | None):
        return "", f"expected a URL in '{column}', found {_json_kind(found)}"
    return found or "", ""


def _fields(row: Any, source: SourceConfig) -> tuple[str, str, tuple[tuple[int, int], ...]]:
    """Returns (text, flaw, ranges without loss) of a row. The text is '' if it is null."""
    if not isinstance(row, dict):
        return "", f"expected an object with '{source.text_field}', found {_json_kind(row)}", ()
    if source.text_field not in row:
        return "", _no_column(source.text_field, list(islice(row, 20))), ()
    text = row[source.text_field]
    if text is None:
        return "", "", ()
    if isinstance(text, bytes):
        kind = other_kind(text)
        try:
            text = without_mark(text).decode("utf-8")
        except UnicodeDecodeError as error:
            flaw = f"expected UTF-8 text, found {kind}" if kind else ""
            return "", flaw or f"invalid UTF-8 at byte {error.start}", ()
    if not isinstance(text, str):
        return "", f"expected text in '{source.text_field}', found {_json_kind(text)}", ()
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            return "", "an unpaired surrogate such as \\ud800 is not valid Unicode", ()
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
        flaw = f"expected [start, end) pairs inside the text in '{column}', found {str(found)[:40]}"
        return "", flaw, ()
    return text, "", tuple((start, end) for start, end in ranges if start < end)


def _json_kind(value: Any) -> str:
    """Returns the JSON type of a value in words, for a message."""
    if isinstance(value, (list, dict)):
        return f"an array of {len(value)}" if isinstance(value, list) else "an object"
    if value is None or isinstance(value, bool):
        return "null" if value is None else "a boolean"
    kinds = {int: "a number", float: "a number", str: "a string"}
    return kinds.get(type(value), f"a {type(value).__name__}")


def _no_column(column: str, names: list[str]) -> str:
    return (
        f"there is no column '{column}' (columns: {', '.join(names) or 'none'}). Name another "
        "column on the source"
    )


def _shown(raw: bytes) -> str:
    """Returns the beginning of a malformed row as text, for the report."""
    return raw[:2000].decode("utf-8", "replace").rstrip("\n")
