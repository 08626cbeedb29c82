"""Writes the shards of one unit with Megatron-core; runs in a process of its own."""

from __future__ import annotations

import hashlib
import json
import logging
import random
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from data_pipeline.corpus import SourceConfig
from data_pipeline.readers import Unit, read_unit
from data_pipeline.selection import HELD_OUT, TRAIN, Chosen
from data_pipeline.tokenizer import load_tokenizer

ENCODE_BYTES = 4_000_000
"""Text that is encoded in one call."""

Text = tuple[str, int, str]


def write_unit(
    unit: Unit, source: SourceConfig, chosen: Chosen, folder: Path, eos_id: int, seed: int
) -> dict[str, dict[str, Any]]:
    """Encodes a unit's documents and writes a shard a split; returns the manifest's entries.

    The documents of a unit are shuffled by a key of their own. Beside a shard, `.docs.jsonl` names
    the file and position of each document.
    """
    tokenizer = load_tokenizer(folder / "tokenizer.json")
    numbers = dict.fromkeys(chosen.train, TRAIN)
    numbers |= dict.fromkeys(chosen.held_out, HELD_OUT)
    texts: dict[str, list[Text]] = {TRAIN: [], HELD_OUT: []}
    for number, (file, position, text) in enumerate(read_unit(unit, source)):
        if number in numbers:
            assert text is not None
            texts[numbers[number]].append((file, position, text))
    entries = {}
    for split, documents in texts.items():
        if documents:
            random.Random(f"{seed}:{unit.source}:{unit.number}:{split}").shuffle(documents)
            prefix = folder / split / f"{unit.source}-{unit.number:05}"
            entries[split] = _write_shard(prefix, documents, tokenizer, eos_id)
    return entries


def _write_shard(
    prefix: Path, documents: list[Text], tokenizer: Tokenizer, eos_id: int
) -> dict[str, Any]:
    import torch

    builder_class, dtype = _megatron(tokenizer.get_vocab_size())
    prefix.parent.mkdir(parents=True, exist_ok=True)
    builder = builder_class(f"{prefix}.bin", dtype=dtype)
    tokens = 0
    with prefix.with_name(prefix.name + ".docs.jsonl").open("w") as table:
        for group in _groups(documents):
            for (file, position, _), encoded in zip(
                group, tokenizer.encode_batch_fast([text for _, _, text in group]), strict=True
            ):
                ids = [*encoded.ids, eos_id]
                builder.add_document(torch.tensor(ids), [len(ids)])
                table.write(json.dumps([file, position]) + "\n")
                tokens += len(ids)
    builder.finalize(f"{prefix}.idx")
    return {
        "file": f"{prefix.parent.name}/{prefix.name}",
        "documents": len(documents),
        "tokens": tokens,
        "bytes": sum(len(text.encode()) for _, _, text in documents),
        "sha256": _sha256(Path(f"{prefix}.bin")),
        "idx_sha256": _sha256(Path(f"{prefix}.idx")),
    }


def _groups(documents: list[Text]) -> Iterator[list[Text]]:
    group: list[Text] = []
    size = 0
    for document in documents:
        group.append(document)
        size += len(document[2])
        if size >= ENCODE_BYTES:
            yield group
            group, size = [], 0
    if group:
        yield group


def _megatron(vocab_size: int) -> tuple[Any, Any]:
    """Megatron's builder and the dtype it takes for a vocabulary, without its page of warnings."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        from megatron.core.datasets.indexed_dataset import DType, IndexedDatasetBuilder

        logging.disable(logging.NOTSET)
    return IndexedDatasetBuilder, DType.optimal_dtype(vocab_size)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
