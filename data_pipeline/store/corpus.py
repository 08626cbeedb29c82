"""Opens a corpus by path or URL, and the token streams of its sources."""

from __future__ import annotations

from pathlib import Path

from data_pipeline.store.block_cache import shared_cache
from data_pipeline.store.manifest import Manifest, load_manifest
from data_pipeline.store.remote import RemoteShards, cache_corpus, remote_url
from data_pipeline.store.sizes import check_sizes
from data_pipeline.store.storage import is_remote
from data_pipeline.store.streams import LocalShards, ShardReader, TokenStream


def open_corpus(location: str | Path) -> Manifest:
    """Returns the manifest of the corpus in a local folder or at a URL.

    Raises:
        InputError: There is no corpus, or it was made in another format.
        StorageError: The object store does not answer.
    """
    return load_manifest(cache_corpus(str(location)) if is_remote(location) else location)


def open_stream(
    manifest: Manifest,
    split: str,
    source: str,
    cache_bytes: int | None = None,
    check: bool = True,
) -> TokenStream:
    """Returns all shards of a source as one stream of tokens.

    Args:
        manifest: Manifest of the corpus.
        split: `train` or `held_out`.
        source: Name of the source.
        cache_bytes: Size of this process's disk cache for remote corpora; None keeps the current
            size.
        check: If True, file sizes are first compared with the manifest.

    Raises:
        DamagedShard: A file is missing or has the wrong size.
    """
    if check:
        check_sizes(manifest, split, [source])
    entries = manifest.shards(split, source)
    shards: ShardReader
    if remote_url(manifest):
        shards = RemoteShards(manifest, entries, shared_cache(cache_bytes))
    else:
        shards = LocalShards(manifest.folder, entries, manifest.dtype)
    eos_id = int(manifest.tokenizer["eos_id"]) if manifest.ends_in_eos else None
    return TokenStream(shards, entries, manifest.vocab_size, eos_id)
