"""`metrics.jsonl` and `ledger.jsonl` of a run folder; rank 0 only."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pretrain.hooks import Hook

if TYPE_CHECKING:
    from pretrain.trainer import Trainer

LEDGER_KEYS = ("step", "stage", "first_sample", "samples", "digest", "skipped")


class RunFiles(Hook):
    """Appends every record; what an interrupted process wrote beyond the checkpoint that it is
    resumed from is cut off, since those steps are done again."""

    def __init__(self, run_dir: Path) -> None:
        self.metrics = Lines(run_dir / "metrics.jsonl")
        self.ledger = Lines(run_dir / "ledger.jsonl")
        self.rewinds: list[Mapping[str, Any]] = []

    def on_start(self, trainer: Trainer) -> None:
        """Cuts both files to the steps that are done."""
        for lines in (self.metrics, self.ledger):
            keep_steps(lines.path, trainer.step)

    def on_record(self, record: Mapping[str, Any]) -> None:
        """Writes a line at once: a crash loses none."""
        line = {
            key: value for key, value in record.items() if key not in ("first_sample", "digest")
        }
        self.metrics.append(line)
        if record["kind"] != "train":  # once in many steps
            self.metrics.close()
            self.ledger.close()
        if record["kind"] == "train":
            self.ledger.append({key: record[key] for key in LEDGER_KEYS if key in record})
        elif record.get("event") == "rewind":
            self.rewinds.append(record)
        while self.rewinds and not self.ledger.waiting:
            try:
                mark_skipped(self.ledger.path, self.rewinds[0]["to_step"], self.rewinds[0]["step"])
            except OSError:  # no room: with the next line
                return
            self.rewinds.pop(0)

    def on_leave(self, trainer: Trainer) -> None:
        """Closes both files."""
        self.metrics.close()
        self.ledger.close()


class Lines:
    """A file that lines are added to, held open between them: on a cluster's file system it costs
    more to open it than to write the line. Where there is no room lines wait in memory and are
    tried again with the next: a full disk costs no step of the training."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.waiting: list[str] = []
        self._file: int | None = None

    def append(self, record: Mapping[str, Any]) -> None:
        """Writes a line at once, and those that wait before it."""
        self.waiting.append(json.dumps(record) + "\n")
        whole = None
        try:
            file = self._open()
            whole = os.fstat(file).st_size
            content = "".join(self.waiting).encode()
            if (written := os.write(file, content)) < len(content):
                raise OSError(f"{written} of {len(content)} bytes were written")
        except OSError as error:
            if whole is not None and self.path.is_file():
                os.truncate(self.path, whole)  # a line is there or it is not
            self.close()
            if len(self.waiting) == 1:
                why = error.strerror or error
                print(
                    f"ALARM: {self.path} cannot be written ({why}): the training goes on, the "
                    "lines wait in memory and are tried again at every step.",
                    file=sys.stderr,
                    flush=True,
                )
            return
        self.waiting.clear()

    def close(self) -> None:
        """Closes the file until the next line: on a network file system, others see all of it."""
        file, self._file = self._file, None
        if file is not None:
            with suppress(OSError):
                os.close(file)

    def _open(self) -> int:
        """Returns the descriptor of the file that has the path now: it may have been moved, as a
        rotation of logs does, or replaced."""
        if self._file is not None:
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(self._file), os.stat(self.path)):
                    return self._file
            self.close()
        self._file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        return self._file


def keep_steps(path: Path, last: int) -> None:
    """Drops the lines of steps after `last`, and a last line that a crash cut in two."""
    if path.exists():
        replace_lines(path, (line for line, record in _read(path) if record["step"] <= last))


def mark_skipped(path: Path, after: int, last: int) -> None:
    """Says of the steps after `after`, up to `last`, that their tokens are in no weight."""
    why = {"skipped": f"rewound at step {last}"}
    lines = [line | (why if after < line["step"] <= last else {}) for line in whole_lines(path)]
    replace_lines(path, (json.dumps(line).encode() + b"\n" for line in lines))


def whole_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The records of a file, without what a crash or a power cut left half written."""
    return (record for _, record in _read(path))


def replace_lines(path: Path, lines: Iterable[bytes]) -> None:
    """Writes the file anew: all of it, or it stays as it is."""
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
