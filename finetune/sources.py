"""Reads JSON objects from jsonl, JSON or parquet files, folders of them, or via `datasets`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from conf.errors import InputError, first_line
from conf.text_files import JSON_ENDINGS, json_objects

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

HUB = "hf:"
"""Prefix of a data set on the Hugging Face Hub or in its cache, `hf:owner/name`."""

TABLES = (".parquet",)

PlacedRow = tuple[str, dict[str, Any]]
"""A row with its place, such as a file and line, for error messages."""


def public_name(source: str) -> str:
    """Returns the name of a source without its folder, for files that are published."""
    return source if source.startswith(HUB) else Path(source).name


def read_objects(data: str, splits: Sequence[str]) -> Iterator[PlacedRow]:
    """Yields each object of a source with its place.

    Args:
        data: the source.
        splits: names of splits by priority, for a data set that has several; one split is read.

    Raises:
        InputError: the source is missing, of an unknown kind, or unreadable.
    """
    if data.startswith(HUB):
        yield from _rows(_from_hub(data), data, splits)
        return
    path = Path(data)
    if (path / "state.json").is_file() or (path / "dataset_dict.json").is_file():
        from datasets import load_from_disk

        yield from _rows(load_from_disk(data), data, splits)
    elif path.is_dir():
        files = sorted(file for file in path.iterdir() if file.name.endswith(JSON_ENDINGS + TABLES))
        if not files:
            raise InputError(
                f"data={path}: no data files were found in the folder. Give a folder with .jsonl, "
                ".json (compressed or not) or .parquet files."
            )
        for file in files:
            yield from read_objects(str(file), splits)
    elif not path.is_file():
        raise InputError(
            f"data={path}: no such file or folder. Give a jsonl or parquet file, a folder, or "
            f"{HUB}owner/name."
        )
    elif path.name.endswith(TABLES):
        yield from _table(path)
    else:
        yield from json_objects(path, "data")


def _table(path: Path) -> Iterator[PlacedRow]:
    import pyarrow
    from pyarrow import parquet

    number = 0
    try:
        for batch in parquet.ParquetFile(path).iter_batches():
            for row in batch.to_pylist():
                number += 1
                yield f"{path}, row {number}", row
    except (OSError, pyarrow.ArrowException) as error:
        raise InputError(
            f"data={path}: reading the parquet file failed ({error}). Make the file again."
        ) from None


def _rows(loaded: Dataset | DatasetDict, data: str, splits: Sequence[str]) -> Iterator[PlacedRow]:
    from datasets import Dataset

    if not isinstance(loaded, Dataset):
        split = next((split for split in splits if split in loaded), None)
        if split is None:
            raise InputError(
                f"data={data}: no split is named {' or '.join(splits)}. Choose one of "
                f"{', '.join(loaded)} with split=..."
            )
        loaded = loaded[split]
    for number, row in enumerate(loaded, 1):
        yield f"{data}, row {number}", dict(row)


def _from_hub(data: str) -> Dataset | DatasetDict:
    from datasets import load_dataset

    try:
        return load_dataset(data.removeprefix(HUB))
    except Exception as error:  # any error of the network, the Hub or the cache
        raise InputError(
            f"data={data}: loading from the Hub or its cache failed ({first_line(error)}). Check "
            "the name and the network, or give a local file or folder."
        ) from None
