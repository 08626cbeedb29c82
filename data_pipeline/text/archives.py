"""Reads the pages of web archives (WARC, and WET with extracted text) with datatrove's reader.

The text of a WARC page is extracted from its HTML with datatrove's Trafilatura extractor, in this
process and without its time limit, because the result must depend on nothing but the page. For the
same reason, trafilatura's own deduplication is off: it remembers what it has seen before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from conf.errors import InputError, first_line
from conf.text_files import open_text
from data_pipeline.cleaning.words import silence_datatrove

END_OF_RECORD = b"\r\n\r\n"
FIELDS = ("text", "url", "date", "id")
"""Columns of a page. The date is that of the crawl, and the id that of the record."""


def read_pages(path: str, is_html: bool) -> Iterator[tuple[int, dict[str, Any], str]]:
    """Yields each page of an archive: the number of its record, its columns and a flaw, or ''.

    Records that are not pages of text are skipped. Raises ValueError, which names the last record
    that could be read, if the archive is damaged.
    """
    try:
        pages = _pages(path)
        extract = _extractor() if is_html else None
    except ImportError as error:
        raise InputError(
            f"{path}: web archives need the packages of the extra `web` ({first_line(error)}). Run "
            'pip install -c constraints.txt -e ".[web]", and install the library libmagic.'
        ) from None
    last = "before its first page"
    while True:
        try:
            page = next(pages, None)
        except Exception as error:  # warcio, zlib and zstandard have exceptions of their own
            # A header that every record must have is reported as a missing key.
            reason = f"there is no header {error}" if isinstance(error, KeyError) else error
            raise ValueError(
                f"the archive is damaged {last} ({reason}). Download it again, or exclude it"
            ) from None
        if page is None:
            return
        number, columns = page.metadata["record"], page.metadata["columns"]
        last, flaw = f"after record {number}", ""
        if extract is not None:
            try:
                columns["text"] = extract(columns["text"]) or ""
            except Exception as error:  # of the parsers that trafilatura uses
                columns["text"], flaw = "", f"no text can be extracted ({first_line(error)})"
        yield number, columns, flaw


def _pages(path: str) -> Iterator[Any]:
    """Yields datatrove's documents of the pages of an archive."""
    silence_datatrove()
    import cchardet  # noqa: F401
    import magic  # noqa: F401
    from datatrove.pipeline.readers import WarcReader

    def columns(_: Any, data: dict[str, Any], path: str, number: int) -> dict[str, Any]:
        found = {name: data.get(name) for name in FIELDS}
        return {
            "text": data["text"],
            "id": str(number),
            "metadata": {"record": number, "columns": found},
        }

    reader = WarcReader(".", adapter=columns)
    reader.data_folder = _Archive()
    pages: Iterator[Any] = reader.read_file(path)
    return pages


class _Archive:
    """Stands for the folder in which datatrove's reader opens a file.

    warcio takes the end of a truncated archive for that of a whole one. The stream from here raises
    ValueError at such an end, but only after all that precedes it has been read.
    """

    @contextmanager
    def open(self, path: str, *_: Any, **__: Any) -> Iterator[_Archive]:
        """Opens an archive, which may be compressed."""
        with open_text(path) as self._stream:
            self._end = b""
            yield self

    def resolve_paths(self, path: str) -> str:
        """Returns the path that the documents record as theirs."""
        return path

    def read(self, size: int) -> bytes:
        """Returns up to `size` bytes, and none at the end."""
        found = self._stream.read1(size)
        if not found and self._end and self._end != END_OF_RECORD:
            raise ValueError("the last record is truncated")
        self._end = (self._end + found)[-len(END_OF_RECORD) :]
        return found


def _extractor() -> Callable[[str], str | None]:
    import logging

    import trafilatura  # noqa: F401
    from datatrove.pipeline.extractors import Trafilatura

    logging.getLogger("trafilatura").setLevel(logging.CRITICAL)
    extract: Callable[[str], str | None] = Trafilatura(deduplicate=False).extract
    return extract
