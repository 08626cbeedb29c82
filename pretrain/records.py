"""Appends to, reads and edits files with one JSON record per line, such as `metrics.jsonl`."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any


class RecordLog:
    """A file to which records are appended, one per line.

    The file stays open between lines, because opening it on a cluster's file system costs more than
    writing a line. If the disk is full, training continues: the lines are kept in memory, and
    written with the next line if possible.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.waiting: list[str] = []
        self._file: int | None = None

    def append(self, record: Mapping[str, Any]) -> None:
        """Writes a record at once, after all lines that are still waiting."""
        self.waiting.append(json.dumps(record) + "\n")
        size_before = None
        try:
            file = self._open()
            size_before = os.fstat(file).st_size
            content = "".join(self.waiting).encode()
            if (written := os.write(file, content)) < len(content):
                raise OSError(f"{written} of {len(content)} bytes were written")
        except OSError as error:
            if size_before is not None and self.path.is_file():
                os.truncate(self.path, size_before)  # never leaves part of a line
            self.close()
            if len(self.waiting) == 1:
                print(
                    f"ALARM: {self.path} cannot be written ({error.strerror or error}). Training "
                    "continues. The lines are kept in memory, and writing is retried with each "
                    "new line.",
                    file=sys.stderr,
                    flush=True,
                )
            return
        self.waiting.clear()

    def close(self) -> None:
        """Closes the file until the next line, so that other machines see all of it."""
        file, self._file = self._file, None
        if file is not None:
            with suppress(OSError):
                os.close(file)

    def _open(self) -> int:
        """Returns a descriptor of the file at the path, which is reopened if it was replaced.

        A log rotation may move the file, for example.
        """
        if self._file is not None:
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(self._file), os.stat(self.path)):
                    return self._file
            self.close()
        self._file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        return self._file


def drop_steps_after(path: Path, last: int) -> None:
    """Removes the records of steps after `last`, and lines that a crash damaged."""
    if path.exists():
        replace_lines(path, (line for line, record in _read(path) if record["step"] <= last))


def mark_discarded(path: Path, after: int, last: int) -> None:
    """Marks steps `after + 1` to `last` as discarded by a rewind, which undid their updates."""
    why = {"skipped": f"rewound at step {last}"}
    records = [line | (why if after < line["step"] <= last else {}) for line in read_records(path)]
    replace_lines(path, (json.dumps(record).encode() + b"\n" for record in records))


def read_records(path: Path) -> Iterator[dict[str, Any]]:
    """Yields the records of a file, except for lines that a crash or power failure damaged."""
    return (record for _, record in _read(path))


def replace_lines(path: Path, lines: Iterable[bytes]) -> None:
    """Replaces the content of a file atomically."""
    temporary = path.with_suffix(".tmp")
    with temporary.open("wb") as file:
        file.writelines(lines)
    temporary.replace(path)


def _read(path: Path) -> Iterator[tuple[bytes, dict[str, Any]]]:
    with path.open("rb") as file:
        for line in file:
            try:
                record = json.loads(line)
            except ValueError:
                continue
            if isinstance(record, dict) and "step" in record:
                yield line.rstrip(b"\n") + b"\n", record
