"""Streams the rows of a Hugging Face dataset, and explains errors in reading them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any


def dataset_rows(path: str, subset: str | None, split: str) -> Iterator[dict[str, Any]]:
    """Yields the rows of a dataset on the Hub or in a local folder, without downloading it first.

    Raises ValueError with a short explanation if the dataset cannot be read to its end. If two
    files have different columns, the explanation names the files, the column and its types.
    """
    import datasets

    try:
        yield from datasets.load_dataset(path, subset, split=split, streaming=True)
    except Exception as error:  # from the network, the Hub, pyarrow or the file system
        different = _different_files(path, subset, split) if os.path.isdir(path) else ""
        raise ValueError(different or _words(error)) from None


def _different_files(path: str, subset: str | None, split: str) -> str:
    """Describes the first file that cannot be read, or has other columns than the first file.

    Returns '' if all files have the same columns.
    """
    import datasets

    try:
        builder = datasets.load_dataset_builder(path, subset)
    except Exception:  # the folder is not a dataset, which the original error already says
        return ""
    kind = type(builder.config).__module__.rpartition(".")[2]  # for example json or parquet
    files = [str(file) for file in (builder.config.data_files or {}).get(split, [])]
    expected: dict[str, str] = {}
    for number, file in enumerate(files):
        try:
            found = _columns(kind, file)
        except Exception as error:
            return f"{os.path.relpath(file, path)}: {_words(error)}"
        if not number:
            expected = found
        for column in sorted(expected.keys() | found.keys()):
            kinds = [columns.get(column, "missing") for columns in (expected, found)]
            if kinds[0] != kinds[1]:
                names = [os.path.relpath(name, path) for name in (files[0], file)]
                return (
                    f"column '{column}' is {kinds[0]} in {names[0]}, but {kinds[1]} in {names[1]}. "
                    "Give the column the same type in all files, or use format=jsonl or "
                    "format=parquet, which read only the columns that are needed"
                )
    return ""


def _columns(kind: str, file: str) -> dict[str, str]:
    """Returns the columns of one file with their types."""
    import datasets

    rows = datasets.load_dataset(kind, data_files=[file], split="train", streaming=True)
    features = rows._resolve_features().features or {}
    return {name: _kind(feature) for name, feature in features.items()}


def _kind(feature: Any) -> str:
    """Returns the type of a column in plain words."""
    kind = getattr(feature, "dtype", None)
    if isinstance(kind, str) and kind not in ("dict", "list"):
        return kind
    return "an object" if isinstance(feature, dict) else f"a {type(feature).__name__.lower()}"


def _words(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".")[:300] or type(error).__name__
