"""Text and JSON objects of files as people have them: compressed, with a byte order mark, one
object per line or all of them in an array."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from conf.errors import InputError
from conf.raw_text import COMPRESSED, compression_of, decompressed, how_to_convert, other_kind

JSON_ENDINGS = tuple(kind + end for kind in (".jsonl", ".json") for end in ("", *COMPRESSED))
"""Of files that hold JSON objects."""

BLANK = re.compile(r"[\s\ufeff]*")  # a byte order mark stands inside where files were concatenated


def read_text(path: Path, key: str) -> str:
    """Returns the text of a file, decompressed where its first bytes say that it is compressed
    (gzip, bzip2, xz, zstd), without its byte order mark.

    key: the setting that names the file.

    Raises:
        InputError: the file is damaged or not UTF-8.
    """
    try:
        content = _decompressed(path.read_bytes())
    except (OSError, ValueError) as error:
        raise InputError(f"{key}={path} cannot be read: {error}.") from None
    kind = other_kind(content)
    if kind:
        raise InputError(f"{key}={path} is {kind}, expected UTF-8: {how_to_convert(kind)}.")
    try:
        return content.decode().removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise InputError(f"{key}={path} is not UTF-8 at byte {error.start}.") from None


def json_objects(path: Path, key: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields each JSON object of a file with its place for error messages: objects one after the
    other, as jsonl has one per line, or those of an array. Blank lines are skipped.

    Raises:
        InputError: the file cannot be read, or holds anything else.
    """
    text = read_text(path, key)
    decoder = json.JSONDecoder()
    line, end = 1, 0
    while True:
        blank = BLANK.match(text, end)
        assert blank is not None
        line, start = line + text.count("\n", end, blank.end()), blank.end()
        if start == len(text):
            return
        place = f"{path}, line {line}"
        try:
            value, end = decoder.raw_decode(text, start)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{place} is not JSON: {error}.") from None
        line += text.count("\n", start, end)
        if isinstance(value, list):
            items = [(f"{path}, item {number}", item) for number, item in enumerate(value, 1)]
        else:
            items = [(place, value)]
        for where, item in items:
            if not isinstance(item, dict):
                raise InputError(
                    f"{where} is {json.dumps(item):.40}, not a JSON object: expected one on each "
                    "line, or an array of them."
                )
            yield where, item


def _decompressed(content: bytes) -> bytes:
    compression = compression_of(content)
    if compression is None:
        return content
    with decompressed(io.BytesIO(content), compression) as stream:
        return stream.read()
