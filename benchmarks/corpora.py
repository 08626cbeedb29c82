"""Makes shards of any size for benchmarks of reading, and opens `GPTDataset` on one.

`GPTDataset` is Megatron-core's. The shards have an index and checksums; their tokens are sparse
zeros or random.
"""

from __future__ import annotations

import hashlib
import logging
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from data_pipeline.store.checksums import BLOCK_BYTES, CHECKSUM, read_with_checksums
from data_pipeline.store.index_file import HEADER, MAGIC
from data_pipeline.store.manifest import Manifest, load_manifest

DOCUMENT_TOKENS = 1000
VOCAB_SIZE = 32_000
EOS = 2


def sparse_shard(prefix: Path, tokens: int, whole_index: bool = False) -> dict[str, Any]:
    """Makes a shard of zeros that takes no space on disk, and returns its manifest entry.

    Only the ends of the index are written unless `whole_index`, because nothing else is read when
    documents end in EOS.
    """
    documents = -(-tokens // DOCUMENT_TOKENS)
    prefix.parent.mkdir(parents=True, exist_ok=True)
    with open(f"{prefix}.bin", "wb") as file:
        file.truncate(2 * tokens)
    last = tokens - (documents - 1) * DOCUMENT_TOKENS
    with open(f"{prefix}.idx", "wb") as file:
        file.write(HEADER.pack(MAGIC, 1, 8, documents, documents + 1))
        if whole_index:
            lengths = np.full(documents, DOCUMENT_TOKENS, np.int32)
            lengths[-1] = last
            pointers = np.arange(documents, dtype=np.int64) * DOCUMENT_TOKENS * 2
            for array in (lengths, pointers, np.arange(documents + 1, dtype=np.int64)):
                file.write(array.tobytes())
        else:
            file.truncate(HEADER.size + 20 * documents + 8)
            file.seek(HEADER.size + 4 * (documents - 1))
            file.write(np.int32(last).tobytes())
            file.seek(HEADER.size + 12 * documents - 8)
            file.write(np.int64((documents - 1) * DOCUMENT_TOKENS * 2).tobytes())
    whole, rest = divmod(2 * tokens, BLOCK_BYTES)
    sums = np.full(whole + bool(rest), xxhash.xxh3_64_intdigest(bytes(BLOCK_BYTES)), CHECKSUM)
    if rest:
        sums[-1] = xxhash.xxh3_64_intdigest(bytes(rest))
    sums.tofile(f"{prefix}.sums")
    return entry_of(prefix, documents, tokens)


def random_shard(prefix: Path, tokens: int, seed: int) -> dict[str, Any]:
    """Makes a shard of random ids with 1,000 tokens per document on average; returns its entry."""
    random = np.random.default_rng(seed)
    prefix.parent.mkdir(parents=True, exist_ok=True)
    lengths = 20 + random.exponential(DOCUMENT_TOKENS - 20, tokens // DOCUMENT_TOKENS)
    lengths = lengths.astype(np.int32)
    ends = np.cumsum(lengths, dtype=np.int64)
    ids = random.integers(3, VOCAB_SIZE, int(ends[-1]), dtype=np.uint16)
    ids[ends - 1] = EOS
    ids.tofile(f"{prefix}.bin")
    with open(f"{prefix}.idx", "wb") as file:
        file.write(HEADER.pack(MAGIC, 1, 8, len(lengths), len(lengths) + 1))
        borders = np.arange(len(lengths) + 1, dtype=np.int64)
        for array in (lengths, 2 * (ends - lengths), borders):
            file.write(array.tobytes())
    sums = [sums.tobytes() for _, sums in read_with_checksums(Path(f"{prefix}.bin"))]
    Path(f"{prefix}.sums").write_bytes(b"".join(sums))
    return entry_of(prefix, len(lengths), len(ids))


def entry_of(prefix: Path, documents: int, tokens: int) -> dict[str, Any]:
    """Returns the manifest entry of a shard."""
    digest = hashlib.sha256(prefix.name.encode()).hexdigest()  # of the name, which is enough here
    return {
        "file": f"{prefix.parent.name}/{prefix.name}",
        "documents": documents,
        "tokens": tokens,
        "bytes": 4 * tokens,
        "sha256": digest,
        "idx_sha256": digest,
        "sums": True,
        "masked": False,
    }


def write_manifest(folder: Path, sources: dict[str, list[dict[str, Any]]]) -> Manifest:
    """Writes the manifest of a corpus with these shards."""
    manifest = Manifest(
        folder=folder,
        name="benchmark",
        inputs="benchmark",
        tokenizer={
            **{"file": "tokenizer.json", "sha256": "", "vocab_size": VOCAB_SIZE},
            **{"pad_id": 0, "bos_id": 1, "eos_id": EOS},
        },
        dtype="uint16",
        splits={"train": sources, "held_out": {}},
        sources={},
        ends_in_eos=True,
    )
    (folder / "manifest.json").write_text(manifest.to_json())
    return load_manifest(folder)


class _Tokenizer:
    """The part of a tokenizer that GPTDataset needs."""

    eod, pad, vocab_size = EOS, 0, VOCAB_SIZE
    unique_identifiers = {"name": "benchmark"}  # noqa: RUF012


def import_megatron() -> None:
    """Imports what `gpt_dataset` needs, without its page of warnings."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        import megatron.core.datasets.gpt_dataset
        import megatron.core.datasets.helpers  # noqa: F401

        logging.disable(logging.NOTSET)


def gpt_dataset(prefix: Path, seq_len: int, samples: int | None, cache: Path) -> Any:
    """Returns Megatron-core's dataset of one shard, with its index files built in `cache`.

    Samples are shuffled, no mask is made (its size would be seq_len squared) and positions are not
    reset: its fastest configuration.
    """
    import_megatron()
    from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig
    from megatron.core.datasets.indexed_dataset import IndexedDataset
    from megatron.core.datasets.utils import Split

    logging.getLogger("megatron").setLevel(logging.ERROR)
    config = GPTDatasetConfig(
        random_seed=1,
        sequence_length=seq_len,
        blend=([str(prefix)], None),
        split="1,0,0",
        path_to_cache=str(cache),
        reset_position_ids=False,
        reset_attention_mask=False,
        eod_mask_loss=False,
        create_attention_mask=False,
        tokenizer=_Tokenizer(),
    )
    indexed = IndexedDataset(str(prefix), multimodal=False, mmap=True)
    documents = np.arange(len(indexed), dtype=np.int32)
    return GPTDataset(indexed, str(prefix), documents, samples, Split.train, config)


def memory() -> dict[str, float]:
    """Returns megabytes of this process: resident, anonymous, and the peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    fields = dict(line.split(":", 1) for line in lines)
    names = {"resident": "VmRSS", "anonymous": "RssAnon", "peak": "VmHWM"}
    return {key: int(fields[name].split()[0]) / 1024 for key, name in names.items()}
