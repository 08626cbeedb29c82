"""Decodes the documents of a tokenized corpus from its shards, exactly as they are trained on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from conf.errors import InputError
from data_pipeline.store.manifest import Manifest
from data_pipeline.store.remote import remote_url
from data_pipeline.store.shards import Shard
from data_pipeline.tokenizing.tokenizer import load_tokenizer


@dataclass(frozen=True)
class Document:
    """A decoded document. It comes from `position` in the raw file `file`."""

    source: str
    file: str
    position: int
    text: str


def read_documents(manifest: Manifest, split: str, source: str) -> Iterator[Document]:
    """Yields the decoded documents of a source without EOS, in the order of its shards.

    A document that was cut during packing is yielded piece by piece. Raises InputError if the
    shards are not on this machine.
    """
    url = remote_url(manifest)
    if url:
        raise InputError(f"{url} is remote. Copy the corpus to this machine, and give its path.")
    tokenizer = load_tokenizer(manifest.tokenizer_path)
    eos = manifest.tokenizer["eos_id"]
    for entry in manifest.shards(split, source):
        shard = Shard(manifest.folder / entry["file"], manifest.dtype)
        starts = np.append(shard.document_starts(0, len(shard.tokens)), len(shard.tokens))
        names = document_names(manifest, entry["file"])
        for number in range(len(starts) - 1):
            file, position = names[number] if names else ("", number)
            if position < 0:  # padding
                continue
            ids = shard.tokens[starts[number] : starts[number + 1]].tolist()
            ids = ids[:-1] if ids and ids[-1] == eos else ids
            yield Document(source, file, position, tokenizer.decode(ids, skip_special_tokens=False))


def document_names(manifest: Manifest, file: str) -> list[tuple[str, int]]:
    """Returns the (file, position) of each document in a shard, or an empty list if unknown."""
    table = manifest.folder / f"{file}.docs.parquet"
    if not table.is_file():
        return []
    import pyarrow.parquet as pq

    columns = pq.read_table(table)
    files, positions = columns["file"].to_pylist(), columns["position"].to_pylist()
    return list(zip(files, positions, strict=True))


def write_names(prefix: Path, files: Sequence[str], positions: Sequence[int]) -> None:
    """Writes the table that `document_names` reads.

    `prefix` is the path of the shard without extension.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    # Parquet strings are UTF-8, but file names need not be.
    names = [file.encode("utf-8", "surrogateescape").decode("utf-8", "replace") for file in files]
    table = pa.table({"file": pa.array(names, pa.string()), "position": positions})
    pq.write_table(table, prefix.with_name(prefix.name + ".docs.parquet"), compression="zstd")
