"""Reads text and JSON files in the various forms in which users store them.

Files may be compressed, begin with a byte order mark, and hold one object per line or an array.
"""

from __future__ import annotations

import bz2
import codecs
import io
import json
import lzma
import re
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from conf.errors import InputError

BUFFER_BYTES = 1 << 20
PIECE_BYTES = 1 << 16
"""Number of compressed bytes to decompress at a time, which bounds the memory of the result."""


class Compression(NamedTuple):
    """A compression format.

    name: its name in messages.
    start: pattern of the bytes that each member begins with.
    make: returns a decompressor for one member.
    """

    name: str
    start: re.Pattern[bytes]
    make: Callable[[], Any]


def _zstd() -> Any:
    import zstandard

    return zstandard.ZstdDecompressor().decompressobj()


GZIP = Compression("gzip", re.compile(rb"\x1f\x8b"), lambda: zlib.decompressobj(31))
# The second pattern is a skippable frame, with which pzstd begins each of its parts.
ZSTD = Compression("zstd", re.compile(rb"\x28\xb5\x2f\xfd|[\x50-\x5f]\x2a\x4d\x18"), _zstd)
BZIP2 = Compression("bzip2", re.compile(rb"BZh[1-9](1AY&SY|\x17rE8P\x90)"), bz2.BZ2Decompressor)
XZ = Compression("xz", re.compile(rb"\xfd7zXZ\x00"), lzma.LZMADecompressor)
COMPRESSIONS = {".gz": GZIP, ".zst": ZSTD, ".zstd": ZSTD, ".bz2": BZIP2, ".xz": XZ}
COMPRESSED = tuple(COMPRESSIONS)
"""Endings of the names of compressed files that `open_text` reads."""

JSON_ENDINGS = tuple(kind + end for kind in (".jsonl", ".json") for end in ("", *COMPRESSED))
"""Endings of the names of files that hold JSON objects."""

BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF32_LE, "UTF-32"),  # before UTF-16, whose mark is a prefix of this one
    (codecs.BOM_UTF32_BE, "UTF-32"),
    (codecs.BOM_UTF16_LE, "UTF-16"),
    (codecs.BOM_UTF16_BE, "UTF-16"),
)
NULS: dict[tuple[bool, ...], str] = {
    (True, False, True, False): "UTF-16",
    (False, True, False, True): "UTF-16",
    (True, True, True, False): "UTF-32",
    (False, True, True, True): "UTF-32",
}
"""Encodings, keyed by whether each of the first 4 bytes is NUL, for text that begins with ASCII
characters (RFC 4627)."""
ARRAY = re.compile(rb"\s*\[(\s*\{|[ \t\r]*\n)")
INDENTED = re.compile(rb"\s*\{[ \t\r]*\n")
BLANK = re.compile(r"[\s\ufeff]*")  # concatenated files may have byte order marks inside


def open_text(path: str | Path) -> io.BufferedReader:
    """Opens a file for reading bytes, decompressed if its name has the ending of a compressed file.

    A compressed file may have several members, each optionally followed by NUL bytes. If the file
    is truncated or damaged, or has other data after a member, reading raises a ValueError that says
    what to do.
    """
    file: io.BufferedReader = io.BufferedReader(io.FileIO(path), BUFFER_BYTES)
    compression = COMPRESSIONS.get(Path(path).suffix)
    if compression is None:
        return file
    return _decompressed(file, compression)


def read_text(path: Path, key: str) -> str:
    """Returns the text of a file without its byte order mark.

    The file is decompressed if its first bytes are those of gzip, bzip2, xz or zstd.

    Args:
        path: the file.
        key: the setting that names the file, for error messages.

    Raises:
        InputError: the file is damaged or not UTF-8.
    """
    try:
        content = path.read_bytes()
        compression = compression_of(content)
        if compression is not None:
            with _decompressed(io.BytesIO(content), compression) as stream:
                content = stream.read()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(
            f"{key}={path} cannot be read: {reason}. Check the path, or write the file again."
        ) from None
    kind = other_kind(content)
    if kind:
        raise InputError(
            f"{key}={path}: expected UTF-8 text, found {kind}. {how_to_convert(kind)}."
        )
    try:
        return content.decode().removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{key}={path}: invalid UTF-8 at byte {error.start}. Convert the file to UTF-8."
        ) from None


def json_objects(path: Path, key: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields each JSON object of a file together with its place, for error messages.

    The file holds one object after another, such as one per line in jsonl, or arrays of objects.
    Blank lines are skipped.

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
            raise InputError(f"{place}: invalid JSON ({error}). Correct the file.") from None
        line += text.count("\n", start, end)
        if isinstance(value, list):
            items = [(f"{path}, item {number}", item) for number, item in enumerate(value, 1)]
        else:
            items = [(place, value)]
        for where, item in items:
            if not isinstance(item, dict):
                raise InputError(
                    f"{where}: expected a JSON object, found {json.dumps(item):.40}. Give one "
                    "object per line, or an array of objects."
                )
            yield where, item


def compression_of(head: bytes) -> Compression | None:
    """Returns the compression of a file that begins with these bytes, or None."""
    known = (GZIP, ZSTD, BZIP2, XZ)
    return next((compression for compression in known if compression.start.match(head)), None)


def without_mark(raw: bytes) -> bytes:
    """Returns the bytes without leading UTF-8 byte order marks."""
    while raw.startswith(codecs.BOM_UTF8):
        raw = raw[len(codecs.BOM_UTF8) :]
    return raw


def other_kind(raw: bytes) -> str:
    """Returns the kind of a file that begins with these bytes, or '' if it may be UTF-8 text."""
    for mark, name in BYTE_ORDER_MARKS:
        if raw.startswith(mark):
            return f"{name} text"
    if len(raw) >= 4 and (name := NULS.get(tuple(byte == 0 for byte in raw[:4]), "")):
        return f"{name} text"
    if raw.startswith((b"PAR1", b"PK\x03\x04")):
        return "Parquet data" if raw.startswith(b"PAR1") else "a zip archive"
    compression = compression_of(raw)
    return f"{compression.name} data" if compression else ""


def how_to_convert(kind: str) -> str:
    """Returns advice on how to make a file of a kind from `other_kind` readable as text."""
    if kind.startswith("UTF"):
        return f"Convert the file with iconv -f {kind.split()[0]} -t UTF-8"
    for ending, compression in COMPRESSIONS.items():
        if kind == f"{compression.name} data":
            return f"Rename the file so that its name ends in {ending}, or decompress it"
    return "Set format: parquet" if kind.startswith("Parquet") else "Unpack the archive"


def check_json_lines(head: bytes) -> None:
    """Raises ValueError if the beginning of a file shows that it does not hold JSON lines."""
    kind = other_kind(head)
    if kind:
        raise ValueError(f"expected UTF-8 text, found {kind}. {how_to_convert(kind)}")
    head = without_mark(head)
    if ARRAY.match(head):
        raise ValueError(
            "expected one object per line, found an array. Convert the file with jq -c '.[]'"
        )
    if INDENTED.match(head):
        raise ValueError(
            "expected one object per line, found an object that spans several lines. Convert the "
            "file with jq -c ."
        )


class _Joined(io.RawIOBase):
    """The content of a compressed file, with all members joined."""

    def __init__(self, file: BinaryIO, compression: Compression) -> None:
        self._file = file
        self._pieces = _pieces(file, compression)
        self._rest = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._rest:
            piece = next(self._pieces, None)
            if piece is None:
                return 0
            self._rest = memoryview(piece)
        count = min(len(buffer), len(self._rest))
        buffer[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count

    def close(self) -> None:
        self._file.close()
        super().close()


def _decompressed(file: BinaryIO, compression: Compression) -> io.BufferedReader:
    return io.BufferedReader(_Joined(file, compression), BUFFER_BYTES)


def _pieces(file: BinaryIO, compression: Compression) -> Iterator[bytes]:
    """Yields the decompressed bytes of each piece of the file."""
    name, member, members = compression.name, None, 0
    while chunk := file.read(PIECE_BYTES):
        while chunk:
            if member is None:
                chunk = chunk.lstrip(b"\0") if members else chunk  # padding, as from tape drives
                if not chunk:
                    break
                chunk += file.read(16) if len(chunk) < 16 else b""
                if not compression.start.match(chunk):
                    raise ValueError(_not_a_member(name, members, file.tell() - len(chunk)))
                member = compression.make()
            try:
                yield member.decompress(chunk)
            except Exception as error:  # each library has its own exception
                raise ValueError(
                    f"the {name} data are damaged ({error}). Make the file again"
                ) from None
            chunk = b""
            if member.eof:
                chunk, member, members = member.unused_data, None, members + 1
    if member is not None or not members:
        raise ValueError(f"the {name} data are truncated. Make the file again")


def _not_a_member(name: str, members: int, byte: int) -> str:
    if not members:
        return (
            f"the file does not contain {name} data, although its name says so. Rename it, or make "
            "it again"
        )
    return (
        f"other data follow the {name} data at byte {byte}. If they are not needed, keep only the "
        f"first {byte} bytes (head -c {byte})"
    )
