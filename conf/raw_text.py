"""Text files as people have them: compressed, with a byte order mark, or of another kind."""

from __future__ import annotations

import bz2
import codecs
import io
import lzma
import re
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

BUFFER_BYTES = 1 << 20
PIECE_BYTES = 1 << 16
"""Compressed bytes that are decompressed at a time, which bounds the memory of the result."""


class Compression(NamedTuple):
    """name: of the format; start: what each member begins with; make: its decompressor."""

    name: str
    start: re.Pattern[bytes]
    make: Callable[[], Any]


def _zstd() -> Any:
    import zstandard

    return zstandard.ZstdDecompressor().decompressobj()


GZIP = Compression("gzip", re.compile(rb"\x1f\x8b"), lambda: zlib.decompressobj(31))
# The second form is a frame that decompressors skip, with which pzstd begins each of its parts.
ZSTD = Compression("zstd", re.compile(rb"\x28\xb5\x2f\xfd|[\x50-\x5f]\x2a\x4d\x18"), _zstd)
BZIP2 = Compression("bzip2", re.compile(rb"BZh[1-9](1AY&SY|\x17rE8P\x90)"), bz2.BZ2Decompressor)
XZ = Compression("xz", re.compile(rb"\xfd7zXZ\x00"), lzma.LZMADecompressor)
COMPRESSIONS = {".gz": GZIP, ".zst": ZSTD, ".zstd": ZSTD, ".bz2": BZIP2, ".xz": XZ}
COMPRESSED = tuple(COMPRESSIONS)
"""Endings of the names of compressed files that `open_text` reads."""

BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF32_LE, "UTF-32"),  # begins as the mark of UTF-16 does
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
"""Which of the first four bytes are NUL where a text begins with ASCII (RFC 4627, section 3)."""
ARRAY = re.compile(rb"\s*\[(\s*\{|[ \t\r]*\n)")
INDENTED = re.compile(rb"\s*\{[ \t\r]*\n")


def open_text(path: str | Path) -> io.BufferedReader:
    """Returns the bytes of a file, decompressed where its name ends as a compressed file's.

    A compressed file may have several members and NUL bytes behind each. Reading one that is cut
    off, damaged or has anything else behind a member raises ValueError, which says what to do.
    """
    file: io.BufferedReader = io.BufferedReader(io.FileIO(path), BUFFER_BYTES)
    compression = COMPRESSIONS.get(Path(path).suffix)
    if compression is None:
        return file
    return decompressed(file, compression)


def decompressed(file: BinaryIO, compression: Compression) -> io.BufferedReader:
    """Returns the content of a compressed file as `open_text` does."""
    return io.BufferedReader(_Joined(file, compression), BUFFER_BYTES)


def compression_of(head: bytes) -> Compression | None:
    """Returns how the file is compressed that begins with these bytes."""
    known = (GZIP, ZSTD, BZIP2, XZ)
    return next((compression for compression in known if compression.start.match(head)), None)


def without_mark(raw: bytes) -> bytes:
    """Returns the bytes without the byte order marks of UTF-8 that they begin with."""
    while raw.startswith(codecs.BOM_UTF8):
        raw = raw[len(codecs.BOM_UTF8) :]
    return raw


def other_kind(raw: bytes) -> str:
    """Returns what a file is that begins with these bytes, or '' where it may be UTF-8 text."""
    for mark, name in BYTE_ORDER_MARKS:
        if raw.startswith(mark):
            return f"{name} text"
    if len(raw) >= 4 and (name := NULS.get(tuple(byte == 0 for byte in raw[:4]), "")):
        return f"{name} text"
    if raw.startswith((b"PAR1", b"PK\x03\x04")):
        return "Parquet" if raw.startswith(b"PAR1") else "a zip archive"
    compression = compression_of(raw)
    return f"compressed with {compression.name}" if compression else ""


def how_to_convert(kind: str) -> str:
    """Returns what to do with a file of which `other_kind` said what it is."""
    if kind.startswith("UTF"):
        return f"convert it with iconv -f {kind.split()[0]} -t UTF-8"
    if kind.startswith("compressed"):
        ending = next(e for e, known in COMPRESSIONS.items() if kind.endswith(known.name))
        return f"let its name end in {ending}, or decompress it"
    return "give format: parquet" if kind == "Parquet" else "unpack it"


def check_json_lines(head: bytes) -> None:
    """Raises ValueError where the beginning of a file shows that it does not hold JSON lines."""
    kind = other_kind(head)
    if kind:
        raise ValueError(f"it is {kind}, expected UTF-8: {how_to_convert(kind)}")
    head = without_mark(head)
    if ARRAY.match(head):
        raise ValueError(
            "it is one JSON array, expected an object on each line: convert it with jq -c '.[]'"
        )
    if INDENTED.match(head):
        raise ValueError(
            "its JSON is spread over several lines, expected an object on each line: convert it "
            "with jq -c ."
        )


class _Joined(io.RawIOBase):
    """The content of a compressed file, all members joined."""

    def __init__(self, file: BinaryIO, compression: Compression) -> None:
        self._file = file
        self._pieces = _pieces(file, compression)
        self._left = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._left:
            piece = next(self._pieces, None)
            if piece is None:
                return 0
            self._left = memoryview(piece)
        count = min(len(buffer), len(self._left))
        buffer[:count] = self._left[:count]
        self._left = self._left[count:]
        return count

    def close(self) -> None:
        self._file.close()
        super().close()


def _pieces(file: BinaryIO, compression: Compression) -> Iterator[bytes]:
    """Yields what each piece of the file is decompressed to."""
    name, member, members = compression.name, None, 0
    while chunk := file.read(PIECE_BYTES):
        while chunk:
            if member is None:
                chunk = chunk.lstrip(b"\0") if members else chunk  # padding, as tape drives add
                if not chunk:
                    break
                chunk += file.read(16) if len(chunk) < 16 else b""
                if not compression.start.match(chunk):
                    raise ValueError(_not_a_member(name, members, file.tell() - len(chunk)))
                member = compression.make()
            try:
                yield member.decompress(chunk)
            except Exception as error:  # each library has its own
                raise ValueError(f"its {name} data are damaged ({error}): make it again") from None
            chunk = b""
            if member.eof:
                chunk, member, members = member.unused_data, None, members + 1
    if member is not None or not members:
        raise ValueError(f"its {name} data are cut off: make it again")


def _not_a_member(name: str, members: int, byte: int) -> str:
    if not members:
        return f"it is not {name} data, as its name says: rename it, or make it again"
    return (
        f"what follows its {name} data at byte {byte} is not {name}: if the rest is of no use, "
        f"keep the first {byte} bytes (head -c {byte})"
    )
