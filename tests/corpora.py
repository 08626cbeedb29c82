"""Small tokenized corpora for tests: real text, one token per byte, written by Megatron-core."""

from __future__ import annotations

import hashlib
import json
import sysconfig
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from tokenizers.pre_tokenizers import ByteLevel

from data_pipeline.store.manifest import Manifest, tokenizer_fingerprint
from data_pipeline.tokenizing.tokenizer import token_bytes

SPECIAL = ["<pad>", "<s>", "</s>"]
VOCAB_SIZE = len(SPECIAL) + 256


def byte_tokenizer(merges: Sequence[tuple[str, str]] = (), turned: bool = False) -> Tokenizer:
    """Returns a byte-level tokenizer: special tokens, then one id per byte, then one per merge.

    With `turned`, the bytes are in the opposite order.
    """
    pieces = [*SPECIAL, *sorted(ByteLevel.alphabet(), reverse=turned), *map("".join, merges)]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.BPE(vocabulary, list(merges)))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(SPECIAL)
    return tokenizer


def write_shard(
    prefix: Path, documents: list[list[int]], dtype: str = "uint16"
) -> dict[str, object]:
    """Writes one .bin/.idx pair and returns its entry in the manifest."""
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

    prefix.parent.mkdir(parents=True, exist_ok=True)
    builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=np.dtype(dtype).type)
    for document in documents:
        builder.add_document(torch.tensor(document), [len(document)])
    builder.finalize(f"{prefix}.idx")

    def digest(ending: str) -> str:
        return hashlib.sha256(Path(f"{prefix}{ending}").read_bytes()).hexdigest()

    return {
        "file": f"{prefix.parent.name}/{prefix.name}",
        "documents": len(documents),
        "tokens": sum(map(len, documents)),
        "bytes": sum(len(document) - 1 for document in documents),
        "sha256": digest(".bin"),
        "idx_sha256": digest(".idx"),
    }


def make_corpus(
    folder: Path,
    tokens: int = 120_000,
    held_out: int = 6_000,
    tokenizer: Tokenizer | None = None,
) -> Manifest:
    """Makes a corpus of two sources, `code` and `prose`, from the standard library's own text.

    Documents have a few hundred tokens, and each source has two shards.
    """
    tokenizer = tokenizer or byte_tokenizer()
    sizes = token_bytes(tokenizer)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    library = Path(sysconfig.get_path("stdlib"))
    texts = {
        "code": (library / "argparse.py").read_text() + (library / "typing.py").read_text(),
        "prose": (library / "pydoc_data" / "topics.py").read_text(),
    }
    splits: dict[str, dict[str, list[dict[str, object]]]] = {"train": {}, "held_out": {}}
    for source, text in texts.items():
        ids = tokenizer.encode(text[: tokens + held_out]).ids
        for split, part in (("train", ids[held_out:]), ("held_out", ids[:held_out])):
            lengths = np.random.default_rng(0).integers(20, 400, len(part) // 20)
            cuts = np.cumsum(lengths)
            cuts = cuts[cuts < len(part)]
            documents = [[*d.tolist(), 2] for d in np.split(np.array(part), cuts)]
            half = len(documents) // 2
            splits[split][source] = [
                write_shard(folder / split / f"{source}-{number:05}", shard)
                | {"bytes": int(sum(sizes[document].sum() for document in shard))}
                for number, shard in enumerate((documents[:half], documents[half:]))
            ]
    np.save(folder / "token_bytes.npy", sizes)
    manifest = Manifest(
        folder=folder,
        name="bytes",
        inputs="test",
        tokenizer={
            "file": "tokenizer.json",
            "sha256": tokenizer_fingerprint(folder / "tokenizer.json"),
            "vocab_size": len(sizes),
            "pad_id": 0,
            "bos_id": 1,
            "eos_id": 2,
        },
        dtype="uint16",
        splits=splits,
        sources={},
    )
    (folder / "manifest.json").write_text(manifest.to_json())
    return manifest


def grow_corpus(manifest: Manifest, texts: Mapping[str, str]) -> Manifest:
    """Adds an edition to a corpus: one more shard per source, with one document per paragraph.

    Args:
        manifest: The corpus. Its folder gets the new shards and the new manifest.
        texts: New text per source. Sources may be new.
    """
    tokenizer = Tokenizer.from_file(str(manifest.tokenizer_path))
    splits: dict[str, dict[str, list[dict[str, object]]]] = {"train": {}, "held_out": {}}
    for source, text in texts.items():
        documents = [[*tokenizer.encode(part).ids, 2] for part in text.split("\n\n") if part]
        for split, part in (("train", documents[4:]), ("held_out", documents[:4])):
            number = len(manifest.shards(split, source))
            prefix = manifest.folder / split / f"{source}-{number:05}"
            splits[split][source] = [write_shard(prefix, part)]
    inputs = f"addition to {manifest.fingerprint}"
    grown = manifest.extended(replace(manifest, inputs=inputs, splits=splits, editions=[]))
    (manifest.folder / "manifest.json").write_text(grown.to_json())
    return grown


def read_json_lines(path: Path) -> list[dict]:
    """Returns the records of a jsonl file."""
    return [json.loads(line) for line in path.read_text().splitlines()]
