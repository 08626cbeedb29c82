"""Writes the shards of one unit with Megatron-core; runs in a process of its own.

Text files come in units that fit one shard a split; a file of rows may be of any size and is cut
into as many shards as it takes, so that memory is bounded by `shard_bytes`.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from conf.errors import InputError
from data_pipeline.corpus import CorpusConfig
from data_pipeline.readers import Unit, read_unit
from data_pipeline.selection import HELD_OUT, TRAIN, Chosen
from data_pipeline.tokenizer import load_tokenizer, vocab_size_of

ENCODE_BYTES = 4_000_000
"""Text that is encoded in one call."""

Text = tuple[str, int, str]


def write_unit(
    unit: Unit, corpus: CorpusConfig, chosen: Chosen, folder: Path, eos_id: int
) -> dict[str, list[dict[str, Any]]]:
    """Encodes a unit's documents and writes its shards; returns the manifest's entries by split.

    The documents of a shard are shuffled by a key of their own. Beside it, `.docs.jsonl` names the
    file and position of each document.
    """
    tokenizer = load_tokenizer(folder / "tokenizer.json")
    entries: dict[str, list[dict[str, Any]]] = {TRAIN: [], HELD_OUT: []}
    for split, documents in _shards_of_text(unit, corpus, chosen):
        part = len(entries[split])
        name = f"{unit.source}-{unit.number:05}" + (f"-{part:05}" if part else "")
        key = f"{corpus.seed}:{unit.source}:{unit.number}:{split}" + (f":{part}" if part else "")
        random.Random(key).shuffle(documents)
        entries[split].append(_write_shard(folder / split / name, documents, tokenizer, eos_id))
    return entries


def _shards_of_text(
    unit: Unit, corpus: CorpusConfig, chosen: Chosen
) -> Iterator[tuple[str, list[Text]]]:
    """The documents of a unit, cut by split into lists of at least `shard_bytes` and a last one."""
    numbers = dict.fromkeys(chosen.train, TRAIN) | dict.fromkeys(chosen.held_out, HELD_OUT)
    texts: dict[str, list[Text]] = {TRAIN: [], HELD_OUT: []}
    sizes = {TRAIN: 0, HELD_OUT: 0}
    for number, (file, position, text) in enumerate(read_unit(unit, corpus.sources[unit.source])):
        split = numbers.get(number)
        if split is None:
            continue
        if text is None:
            raise InputError(f"{file} was changed while it was read: tokenize again.")
        texts[split].append((file, position, text))
        sizes[split] += len(text.encode())
        if sizes[split] >= corpus.shard_bytes:
            yield split, texts[split]
            texts[split], sizes[split] = [], 0
    yield from ((split, documents) for split, documents in texts.items() if documents)


def _write_shard(
    prefix: Path, documents: list[Text], tokenizer: Tokenizer, eos_id: int
) -> dict[str, Any]:
    import torch

    from data_pipeline.megatron_writer import DType, IndexedDatasetBuilder

    prefix.parent.mkdir(parents=True, exist_ok=True)
    dtype = DType.optimal_dtype(vocab_size_of(tokenizer))
    builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=dtype)
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


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
