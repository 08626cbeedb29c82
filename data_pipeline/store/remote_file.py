"""Opens a file on this machine or in an object store as a stream that can be read and seeked."""

from __future__ import annotations

import io
from concurrent.futures import Future
from pathlib import Path
from typing import Any, BinaryIO

from data_pipeline.store.storage import (
    READ_AHEAD_BYTES,
    file_info,
    is_remote,
    local_path,
    read_ranges,
)
from data_pipeline.store.threads import in_thread


def open_binary(url: str | Path) -> BinaryIO:
    """Opens a local or remote file for reading.

    A remote file supports seeking, reads ahead, and retries if the store fails while it is read.

    Raises:
        FileNotFoundError: The file does not exist.
        StorageError: The store does not answer.
    """
    if not is_remote(url):
        return local_path(url).open("rb")
    about = file_info(url)
    if about is None:
        raise FileNotFoundError(f"{url} does not exist")
    return io.BufferedReader(_RemoteFile(str(url), about.size), READ_AHEAD_BYTES)


class _RemoteFile(io.RawIOBase):
    """A remote file of known size, which is read range by range, with one range of read-ahead."""

    def __init__(self, url: str, size: int) -> None:
        self.url, self.size = url, size
        self.name = url
        self._at = 0
        self._ahead: tuple[int, int, Future[bytes]] | None = None

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self.size}[whence]
        return self._at

    def readinto(self, buffer: Any) -> int:
        start, end = self._at, min(self.size, self._at + len(buffer))
        if start >= end:
            return 0
        ahead, self._ahead = self._ahead, None
        if ahead is not None and ahead[:2] == (start, end):
            data = ahead[2].result()
        else:
            data = read_ranges(self.url, [(start, end)])[0]
        buffer[: len(data)] = data
        self._at = end
        following = min(self.size, end + len(buffer))
        if len(buffer) >= READ_AHEAD_BYTES and end < following:
            wanted = [(end, following)]
            self._ahead = end, following, in_thread(lambda: read_ranges(self.url, wanted)[0])
        return len(data)
