"""Shards opened by Megatron-core's own reader: what we write, it must read unchanged."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from data_pipeline.store.shards import Shard


def differences(folder: Path, files: Iterable[str], dtype: str) -> Iterator[tuple[str, str]]:
    """Of shards (paths without ending) the file and what Megatron-core reads otherwise than we do:
    the number of documents, and the tokens of the first, middle and last one."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)  # a page about packages that it would like to have
        try:
            from megatron.core.datasets.indexed_dataset import IndexedDataset
        finally:
            logging.disable(logging.NOTSET)
    for file in files:
        try:
            theirs = IndexedDataset(str(folder / file))
        except Exception as error:  # asserts, ValueErrors: whatever its reader says
            yield file, f"Megatron-core cannot open it ({str(error) or type(error).__name__})"
            continue
        ours = Shard(folder / file, dtype)
        borders = theirs.document_indices
        if len(borders) - 1 != ours.documents:
            found = len(borders) - 1
            yield file, f"Megatron-core finds {found} documents, we find {ours.documents}"
            continue
        for number in sorted({0, ours.documents // 2, ours.documents - 1}):
            start, end = borders[number : number + 2]
            tokens = [theirs[sequence] for sequence in range(start, end)] or [[]]
            first, after = ours.index.document(number)
            if not np.array_equal(np.concatenate(tokens), ours.tokens[first:after]):
                yield file, f"Megatron-core reads other tokens in document {number}"
