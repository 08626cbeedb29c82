"""Helpers for jsonl files and file hashes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from conf.errors import InputError
from conf.text_files import json_objects


def json_lines(rows: Iterable[Mapping[str, Any]]) -> str:
    """Returns the content of a jsonl file that holds these rows."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def read_json_lines(path: Path, key: str) -> list[dict[str, Any]]:
    """Returns the objects of the jsonl file that the setting `key` names, skipping blank lines.

    Raises:
        InputError: the file is missing or not UTF-8, or a line is not a JSON object.
    """
    if not path.is_file():
        raise InputError(f"{key}={path}: the file does not exist. Give a jsonl file.")
    return [row for _, row in json_objects(path, key)]


def digest_of(paths: Iterable[Path], *settings: object) -> str:
    """Returns the sha256 of settings (as JSON) and of the names and contents of files."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for path in sorted(paths):
        digest.update(path.name.encode())
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()
