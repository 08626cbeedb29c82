"""Adopts one shard: checks every token, links its files, and writes its tables."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from conf.errors import InputError
from data_pipeline.import_shards.config import LINKS
from data_pipeline.import_shards.listing import Pair, shard_file
from data_pipeline.store.checksums import CHECKSUM, sha256_of_file
from data_pipeline.store.shard_scan import (
    BadIndex,
    Ints,
    index_flaws,
    read_index,
    scan_tokens,
    write_index_without_empty,
)

TABLE_ROWS = 1 << 20
"""Number of rows of the document table that are written at a time."""


@dataclass(frozen=True)
class Adopted:
    """Result of adopting a shard. `entry` is the shard's entry in the manifest."""

    entry: dict[str, Any]
    dtype: str
    ends_in_eos: bool


def adopt(pair: Pair, folder: Path, tokenizer: dict[str, Any], link: str) -> Adopted:
    """Checks a pair, links or copies it into `folder`, and writes its checksums and document table.

    `tokenizer` is the tokenizer's entry in the manifest, and `folder` must contain its
    token_bytes.npy. Raises InputError for a shard that is damaged or was made with another
    tokenizer.
    """
    bin_path, idx_path = shard_file(pair.prefix, ".bin"), shard_file(pair.prefix, ".idx")
    try:
        index = read_index(idx_path)
    except BadIndex as error:
        raise InputError(
            f"{idx_path} {error.flaw.text}. Restore the file, or leave the shard out."
        ) from None
    flaw = next(iter(index_flaws(index)), None)
    if flaw is not None:
        raise InputError(
            f"{idx_path} is damaged ({flaw}). Restore the file, or leave the shard out."
        )
    lengths = index.document_lengths()
    size, expected = bin_path.stat().st_size, index.tokens * index.dtype.itemsize
    if size != expected:
        raise InputError(
            f"{bin_path} has {size} bytes, but its index requires {expected}. The file is "
            "truncated or belongs to another index. Restore the file, or leave the shard out."
        )
    if not expected:
        raise InputError(f"{bin_path} has no tokens. Leave the shard out.")
    sizes = np.load(folder / "token_bytes.npy", allow_pickle=False)
    vocab_size, eos_id = tokenizer["vocab_size"], tokenizer["eos_id"]
    scan = scan_tokens(bin_path, index.dtype, vocab_size, eos_id, lengths, token_bytes=sizes)
    outside = scan.outside_vocabulary
    if outside.count:
        offset, found = outside.first[0]
        raise InputError(
            f"{bin_path} has the id {found} at token {offset}, outside the vocabulary "
            f"of {vocab_size} ids ({outside.count} such tokens). Set tokenizer to the "
            "tokenizer.json that the shard was made with."
        )
    target = folder / pair.file
    _link(bin_path, shard_file(target, ".bin"), link)
    if lengths.all():
        _link(idx_path, shard_file(target, ".idx"), link)
    else:
        write_index_without_empty(index, shard_file(target, ".idx"))
    shard_file(target, ".sums").write_bytes(scan.checksums.astype(CHECKSUM).tobytes())
    kept = np.flatnonzero(lengths)
    _write_table(target, pair.prefix, kept)
    entry = {
        "file": pair.file,
        "documents": len(kept),
        "tokens": index.tokens,
        "bytes": scan.text_bytes,
        "sha256": scan.sha256,
        "idx_sha256": sha256_of_file(shard_file(target, ".idx")),
        "sums": True,
        "masked": False,
    }
    ends_in_eos = not scan.no_eos.count and not scan.eos_inside.count
    return Adopted(entry, index.dtype.name, ends_in_eos)


def check_dtypes(pairs: list[Pair], adopted: list[Adopted]) -> None:
    """Raises InputError if the shards do not all have the same dtype."""
    first = adopted[0].dtype
    for pair, shard in zip(pairs, adopted, strict=True):
        if shard.dtype != first:
            raise InputError(
                f"{shard_file(pair.prefix, '.idx')} has ids of type {shard.dtype}, but "
                f"{shard_file(pairs[0].prefix, '.idx').name} has {first}. Import shards of "
                "different types into different folders."
            )


def _link(path: Path, target: Path, how: str) -> None:
    try:
        if how == "symlink":
            target.symlink_to(path.resolve())
        elif how == "hard":
            os.link(path.resolve(), target)
        else:
            shutil.copyfile(path, target)
    except OSError as error:
        raise InputError(
            f"link={how}: fails for {path} ({error.strerror}). Use another of {', '.join(LINKS)}."
        ) from None


def _write_table(target: Path, prefix: Path, numbers: Ints) -> None:
    """Writes the table with the original shard of each document, and its number in that shard."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema([("file", pa.string()), ("position", pa.int64())])
    path = shard_file(target, ".docs.parquet")
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for first in range(0, len(numbers), TABLE_ROWS):
            positions = pa.array(numbers[first : first + TABLE_ROWS])
            files = pa.array([f"{prefix.name}.bin"] * len(positions))
            writer.write_table(pa.table([files, positions], schema=schema))
