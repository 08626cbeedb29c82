"""The documents of a tokenized corpus, read back from its shards: exactly what is trained on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from data_pipeline.manifest import Manifest
from data_pipeline.shards import Shard
from data_pipeline.tokenizer import load_tokenizer


@dataclass(frozen=True)
class Document:
    """file and position name where it is from."""

    source: str
    file: str
    position: int
    text: str


def read_documents(manifest: Manifest, split: str, source: str) -> Iterator[Document]:
    """Documents of a source in the order of its stream, decoded, without their EOS."""
    tokenizer = load_tokenizer(manifest.tokenizer_path)
    for entry in manifest.shards(split, source):
        shard = Shard(manifest.folder / entry["file"], manifest.dtype)
        starts = np.append(shard.document_starts(0, len(shard.tokens)), len(shard.tokens))
        for number, (file, position) in enumerate(document_names(manifest, entry["file"])):
            ids = shard.tokens[starts[number] : starts[number + 1] - 1].tolist()
            yield Document(source, file, position, tokenizer.decode(ids, skip_special_tokens=False))


def document_names(manifest: Manifest, file: str) -> list[tuple[str, int]]:
    """File and position of every document of a shard; empty where others made the shards."""
    table = manifest.folder / f"{file}.docs.parquet"
    if not table.is_file():
        return []
    import pyarrow.parquet as pq

    columns = pq.read_table(table)
    files, positions = columns["file"].to_pylist(), columns["position"].to_pylist()
    return list(zip(files, positions, strict=True))
