"""The tokenizer of a tokenized corpus: as it lies next to the shards, and as models export it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from data_pipeline.store.manifest import Manifest, tokenizer_fingerprint
from data_pipeline.store.shards import Shard
from data_pipeline.tokenizing.tokenizer import ROLES, as_encoded, load_tokenizer

BEGINNING_TOKENS = 1 << 16
"""Of each shard tell whether documents begin with the tokens that the tokenizer adds."""


def write_adopted_tokenizer(path: Path, special: Sequence[str], manifest: Manifest) -> list[str]:
    """Writes a tokenizer next to the shards, and its fingerprint into the manifest. It adds the
    tokens to a text that it did if all documents begin with them, else none; these are returned.
    """
    tokenizer = load_tokenizer(path)
    added = tokenizer.encode("").ids
    before = tokenizer.encode("a").ids[: len(added)] == added
    keep = before and _all_begin_with(manifest, added)
    content, not_added = as_encoded(path, special, keep_added=keep)
    manifest.tokenizer_path.write_text(content)
    manifest.tokenizer["sha256"] = tokenizer_fingerprint(manifest.tokenizer_path)
    return not_added


def exported_tokenizer(manifest: Manifest) -> tuple[str, dict[str, str]]:
    """Returns the content of a tokenizer.json that encodes texts as those of the corpus are, and
    the spelling of its pad, bos and eos token."""
    tokenizer = load_tokenizer(manifest.tokenizer_path)
    named = {role: tokenizer.id_to_token(manifest.tokenizer[f"{role}_id"]) or "" for role in ROLES}
    # Corpora of earlier versions keep the tokenizer as it was given.
    imported = manifest.origin == "import"
    content, _ = as_encoded(manifest.tokenizer_path, named.values(), keep_added=imported)
    return content, named


def _all_begin_with(manifest: Manifest, ids: list[int]) -> bool:
    """Whether the first documents of each shard begin with the ids."""
    for sources in manifest.splits.values():
        for entry in (entry for shards in sources.values() for entry in shards):
            shard = Shard(manifest.folder / entry["file"], manifest.dtype)
            starts = shard.document_starts(0, min(len(shard.tokens), BEGINNING_TOKENS))
            if any(shard.tokens[start : start + len(ids)].tolist() != ids for start in starts):
                return False
    return True
