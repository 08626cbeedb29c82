"""Compares shards with what Megatron-core's own reader reads from them."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from data_pipeline.store.shards import Shard


def differences(folder: Path, files: Iterable[str], dtype: str) -> Iterator[tuple[str, str]]:
    """Yields each shard that Megatron-core reads differently, with a description of the difference.

    The comparison covers the number of documents, and the tokens of the first, middle and last
    document.

    Args:
        folder: Folder of the corpus.
        files: Paths of the shards in the folder, without suffix.
        dtype: Type of the token ids.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)  # its import warns about optional packages
        try:
            from megatron.core.datasets.indexed_dataset import IndexedDataset
        finally:
            logging.disable(logging.NOTSET)
    for file in files:
        try:
            theirs = IndexedDataset(str(folder / file))
        except Exception as error:  # its reader raises AssertionError, ValueError and others
            yield file, f"Megatron-core cannot open it ({str(error) or type(error).__name__})"
            continue
        ours = Shard(folder / file, dtype)
        boundaries = theirs.document_indices
        if len(boundaries) - 1 != ours.index.documents:
            found = len(boundaries) - 1
            yield (
                file,
                f"Megatron-core finds {found} documents, but there are {ours.index.documents}",
            )
            continue
        for number in sorted({0, ours.index.documents // 2, ours.index.documents - 1}):
            start, end = boundaries[number : number + 2]
            tokens = [theirs[sequence] for sequence in range(start, end)] or [[]]
            first, after = ours.index.document(number)
            if not np.array_equal(np.concatenate(tokens), ours.tokens[first:after]):
                yield file, f"Megatron-core reads different tokens in document {number}"
