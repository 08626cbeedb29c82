"""Text and JSON objects of files as people have them: compressed, with a byte order mark, one
object per line or all of them in an array."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from conf.errors import InputError

PACKED_ENDINGS = ("", ".gz", ".bz2", ".xz", ".zst", ".zstd")
JSON_ENDINGS = tuple(kind + end for kind in (".jsonl", ".json") for end in PACKED_ENDINGS)
"""Of files that hold JSON objects."""

UTF16 = (b"\xff\xfe", b"\xfe\xff")
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
    except (OSError, EOFError, ValueError, zlib.error, lzma.LZMAError) as error:
        raise InputError(f"{key}={path} cannot be read: {error}.") from None
    if content.startswith(UTF16) or b"\0" in content[:2]:
        raise InputError(
            f"{key}={path} is UTF-16: expected UTF-8. Convert it: iconv -f UTF-16 -t UTF-8."
        )
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
    if content.startswith(b"\x1f\x8b"):
        return gzip.decompress(content)
    if content.startswith(b"BZh") and content[4:10] == b"1AY&SY":
        return bz2.decompress(content)
    if content.startswith(b"\xfd7zXZ\0"):
        return lzma.decompress(content)
    if content.startswith(b"\x28\xb5\x2f\xfd"):
        import pyarrow

        # Unlike zstandard's reader, pyarrow's tells a file that is cut off from a whole one.
        with pyarrow.input_stream(pyarrow.py_buffer(content), compression="zstd") as stream:
            return bytes(stream.read())
    return content
