"""Corpora with the additional files that `tokenize` writes: checksums, masks, padding."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.store.checksums import read_with_checksums
from data_pipeline.store.manifest import Manifest, load_manifest
from tests.corpora import write_shard


def sealed(corpus: Manifest, folder: Path, **fields: Any) -> Manifest:
    """Copies a corpus, with checksums for its shards and documents that end in EOS.

    Further fields change its manifest.
    """
    shutil.copytree(corpus.folder, folder)
    changes: dict[str, Any] = {"ends_in_eos": True, **fields}
    return change_manifest(folder, changes)


def change_manifest(folder: Path, changes: dict[str, Any]) -> Manifest:
    """Writes `.sums` of all shards and a manifest with the given changes."""
    path = folder / "manifest.json"
    about = json.loads(path.read_text()) | changes
    for sources in about["splits"].values():
        for entry in [entry for entries in sources.values() for entry in entries]:
            write_sums(folder / entry["file"])
            entry |= {"sums": True, "masked": (folder / f"{entry['file']}.mask").exists()}
    path.write_text(json.dumps(about))
    return load_manifest(folder)


def write_sums(prefix: Path) -> None:
    """Writes the `.sums` of one shard."""
    parts = [sums.tobytes() for _, sums in read_with_checksums(Path(f"{prefix}.bin"))]
    Path(f"{prefix}.sums").write_bytes(b"".join(parts))


def corpus_of(folder: Path, like: Manifest, shards: list[list[list[int]]], **fields: Any):
    """Makes a corpus of one source `a` in these shards, with the tokenizer of `like`."""
    folder.mkdir(parents=True)
    for name in ("tokenizer.json", "token_bytes.npy"):
        shutil.copy(like.folder / name, folder / name)
    entries = [
        write_shard(folder / f"train/a-{number:05}", documents, fields.get("dtype", "uint16"))
        for number, documents in enumerate(shards)
    ]
    about = json.loads((like.folder / "manifest.json").read_text())
    about["splits"] = {"train": {"a": entries}, "held_out": {}}
    (folder / "manifest.json").write_text(json.dumps(about))
    return change_manifest(folder, {"ends_in_eos": True, **fields})


def write_mask(prefix: Path, mask: np.ndarray) -> None:
    """Writes the `.mask` of one shard."""
    Path(f"{prefix}.mask").write_bytes(mask.astype(np.uint8).tobytes())
