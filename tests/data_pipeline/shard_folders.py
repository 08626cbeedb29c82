"""Folders of shards with all their tables, and shards as other programs write them."""

from __future__ import annotations

import dataclasses
import json
import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from data_pipeline.store.checksums import block_checksums
from data_pipeline.store.manifest import Manifest
from tests.corpora import make_corpus

Documents = Sequence[Sequence[Sequence[int]]]
"""Sequences of each document."""


def full_corpus(folder: Path) -> Manifest:
    """Makes a corpus as `tokenize` does: checksums, tables of documents, one shard with a mask."""
    manifest = make_corpus(folder)
    for sources in manifest.splits.values():
        for source, shards in sources.items():
            for entry in shards:
                prefix = str(folder / entry["file"])
                content = Path(f"{prefix}.bin").read_bytes()
                Path(f"{prefix}.sums").write_bytes(block_checksums(content).tobytes())
                numbers = list(range(entry["documents"]))
                files = [f"{source}/{number}.txt" for number in numbers]
                table = pa.table({"file": files, "position": numbers})
                pq.write_table(table, f"{prefix}.docs.parquet")
                entry |= {"sums": True, "masked": entry["file"] == "train/code-00000"}
                if entry["masked"]:
                    Path(f"{prefix}.mask").write_bytes(bytes(entry["tokens"]))
    manifest = dataclasses.replace(
        manifest, ends_in_eos=True, origin="tokenize", encoder={"name": "tokenizers"}
    )
    (folder / "manifest.json").write_text(manifest.to_json())
    return manifest


def megatron_pair(prefix: Path, documents: Documents, dtype: type = np.uint16) -> None:
    """Writes like `tools/preprocess_data.py` of Megatron-LM: one item per sentence.

    The end of the document follows. NeMo writes the same.
    """
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

    prefix.parent.mkdir(parents=True, exist_ok=True)
    builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=dtype)
    for document in documents:
        for sequence in document:
            builder.add_item(torch.tensor(sequence))
        builder.end_document()
    builder.finalize(f"{prefix}.idx")


def neox_pair(prefix: Path, documents: Documents, code: int = 8) -> None:
    """Writes like `MMapIndexedDatasetBuilder` of GPT-NeoX (megatron/data/indexed_dataset.py)."""
    types = {1: np.uint8, 4: np.int32, 6: np.float32, 7: np.float64, 8: np.uint16}
    dtype = np.dtype(types[code])
    sizes, doc_idx, data = [], [0], b""
    for document in documents:
        for sequence in document:
            data += np.array(sequence, dtype=dtype).tobytes(order="C")
            sizes.append(len(sequence))
        doc_idx.append(len(sizes))
    pointers = np.concatenate(([0], np.cumsum(sizes)[:-1])) * dtype.itemsize
    prefix.parent.mkdir(parents=True, exist_ok=True)
    Path(f"{prefix}.bin").write_bytes(data)
    with Path(f"{prefix}.idx").open("wb") as file:
        file.write(b"MMIDIDX\x00\x00")
        file.write(struct.pack("<Q", 1))
        file.write(struct.pack("<B", code))
        file.write(struct.pack("<Q", len(sizes)))
        file.write(struct.pack("<Q", len(doc_idx)))
        file.write(np.array(sizes, dtype=np.int32).tobytes(order="C"))
        file.write(pointers.astype(np.int64).tobytes(order="C"))
        file.write(np.array(doc_idx, dtype=np.int64).tobytes(order="C"))


def write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content))
