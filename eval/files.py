"""Files and folders that are there whole or not at all, and jsonl."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from conf.errors import InputError
from conf.text_files import json_objects


def write_text(path: Path, text: str) -> None:
    """Writes a file through a temporary one beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def write_json_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Writes a jsonl file through a temporary one."""
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def read_json_lines(path: Path, key: str) -> list[dict[str, Any]]:
    """Returns the objects of a jsonl file that setting `key` names; blank lines are skipped.

    Raises:
        InputError: the file is missing or not UTF-8, or a line is not a JSON object.
    """
    if not path.is_file():
        raise InputError(f"{key}={path} is not a file: expected jsonl.")
    return [row for _, row in json_objects(path, key)]


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """Yields a folder beside `out` that takes its place at the end, and vanishes on an error."""
    temporary = out.with_name(out.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        shutil.rmtree(out, ignore_errors=True)
        temporary.rename(out)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def digest_of(paths: Iterable[Path], *settings: object) -> str:
    """sha256 over settings (as JSON) and the names and bytes of files."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for path in sorted(paths):
        digest.update(path.name.encode())
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()
