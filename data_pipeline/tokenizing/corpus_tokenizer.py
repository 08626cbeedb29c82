"""Writes the tokenizer of imported shards, and the tokenizer that is exported with a model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from data_pipeline.store.manifest import Manifest, tokenizer_fingerprint
from data_pipeline.store.shards import Shard
from data_pipeline.tokenizing.tokenizer import ROLES, document_tokenizer, load_tokenizer

BEGINNING_TOKENS = 1 << 16
"""Number of tokens read per shard to find out if documents begin with the added tokens."""


def write_adopted_tokenizer(path: Path, special: Sequence[str], manifest: Manifest) -> list[str]:
    """Writes the tokenizer of imported shards, and returns the special tokens it no longer adds.

    The written tokenizer adds the same tokens to a text as the one at `path` if the documents of
    all shards begin with them, and otherwise none. Its fingerprint is set in the manifest.
    """
    tokenizer = load_tokenizer(path)
    added = tokenizer.encode("").ids
    is_prefix = tokenizer.encode("a").ids[: len(added)] == added
    keep = is_prefix and _all_begin_with(manifest, added)
    content, not_added = document_tokenizer(path, special, keep_added=keep)
    manifest.tokenizer_path.write_text(content)
    manifest.tokenizer["sha256"] = tokenizer_fingerprint(manifest.tokenizer_path)
    return not_added


def exported_tokenizer(manifest: Manifest) -> tuple[str, dict[str, str]]:
    """Returns the tokenizer.json to export with a model, and its pad, bos and eos tokens.

    It encodes a text exactly as the documents of the corpus were encoded.
    """
    tokenizer = load_tokenizer(manifest.tokenizer_path)
    named = {role: tokenizer.id_to_token(manifest.tokenizer[f"{role}_id"]) or "" for role in ROLES}
    # Corpora of earlier versions store the tokenizer unchanged.
    imported = manifest.origin == "import"
    content, _ = document_tokenizer(manifest.tokenizer_path, named.values(), keep_added=imported)
    return content, named


def _all_begin_with(manifest: Manifest, ids: list[int]) -> bool:
    """Returns True if the first documents of each shard begin with `ids`."""
    for sources in manifest.splits.values():
        for entry in (entry for shards in sources.values() for entry in shards):
            shard = Shard(manifest.folder / entry["file"], manifest.dtype)
            starts = shard.document_starts(0, min(len(shard.tokens), BEGINNING_TOKENS))
            if any(shard.tokens[start : start + len(ids)].tolist() != ids for start in starts):
                return False
    return True
