"""Writes shards in Megatron-core's format (`.bin`, `.idx`), with a few files of our own.

The documents of a shard are shuffled with a key, encoded in large groups, and either concatenated
or packed into sequences. Up to three further files are stored next to the shard:

    .docs.parquet   the raw file of each document, and its position there
    .sums           checksums of blocks of tokens
    .mask           marks the tokens that are not trained on, if there are any
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_pipeline.cleaning.chain import utf8_size
from data_pipeline.store.checksums import read_with_checksums, sha256_of_file
from data_pipeline.store.index_file import write_index
from data_pipeline.text.selection import Text
from data_pipeline.tokenizing.documents import write_names
from data_pipeline.tokenizing.encoder import Encoder
from data_pipeline.tokenizing.packing import pack

ENCODE_BYTES = 4_000_000
"""Approximate number of bytes of text that are encoded in one call."""


class ShardWriter:
    """Writer of shards.

    `block_lengths` are the sequence lengths that documents are packed into. If it is empty,
    documents are concatenated.
    """

    def __init__(
        self, encoder: Encoder, dtype: str, eos_id: int, pad_id: int, block_lengths: Sequence[int]
    ) -> None:
        self.encoder = encoder
        self.dtype = np.dtype(dtype)
        self.eos_id = eos_id
        self.pad_id = pad_id
        self.block_lengths = list(block_lengths)

    def write(self, prefix: Path, documents: Sequence[Text]) -> dict[str, Any]:
        """Writes one shard and returns its manifest entry.

        `prefix` is the path without extension, `<folder>/<split>/<name>`. Raises EncoderDiffers if
        the fast encoder fails its check, and OSError if the disk is full.
        """
        prefix.parent.mkdir(parents=True, exist_ok=True)
        masked = any(document.no_loss for document in documents)
        files = [document.file for document in documents]
        positions = [document.position for document in documents]
        masks: list[NDArray[np.uint8]] = []
        parts: Iterable[tuple[NDArray[Any], NDArray[np.int64]]]
        if self.block_lengths:
            encoded = list(self._encoded(documents))
            tokens, lengths, order = self._packed(
                np.concatenate([ids for ids, _ in encoded]),
                np.concatenate([lengths for _, lengths in encoded]),
            )
            if masked:
                masks = [self._packed_mask(self._mask(documents), order, len(tokens))]
            files = [files[n] if n >= 0 else "" for n, *_ in order]
            positions = [positions[n] if n >= 0 else -1 for n, *_ in order]
            parts = [(tokens, lengths)]
        else:
            parts = self._encoded(documents)
            masks = [self._mask(documents)] if masked else []
        lengths = self._write_tokens(prefix, parts)
        write_names(prefix, files, positions)
        if masked:
            prefix.with_name(prefix.name + ".mask").write_bytes(np.concatenate(masks).tobytes())
        return {
            "file": f"{prefix.parent.name}/{prefix.name}",
            "documents": len(files),
            "tokens": int(lengths.sum(dtype=np.int64)),
            "bytes": sum(utf8_size(document.text) for document in documents),
            "sha256": write_sums(prefix),
            "idx_sha256": sha256_of_file(prefix.with_name(prefix.name + ".idx")),
            "sums": True,
            "masked": masked,
        }

    def _write_tokens(
        self, prefix: Path, parts: Iterable[tuple[NDArray[Any], NDArray[np.int64]]]
    ) -> NDArray[np.int64]:
        """Writes `.bin` and `.idx`, and returns the lengths of all sequences."""
        lengths = []
        with prefix.with_name(prefix.name + ".bin").open("wb") as file:
            for tokens, counts in parts:
                file.write(tokens.data)
                lengths.append(counts)
        whole = np.concatenate(lengths)
        write_index(prefix.with_name(prefix.name + ".idx"), self.dtype, whole)
        return whole

    def _encoded(
        self, documents: Sequence[Text]
    ) -> Iterator[tuple[NDArray[Any], NDArray[np.int64]]]:
        """Yields token ids with an EOS after each document, and their lengths, group by group."""
        for group in _groups(documents):
            encoded = self.encoder.encode([document.text for document in group])
            lengths = encoded.lengths + 1
            ends = np.cumsum(lengths) - 1
            tokens = np.empty(len(encoded.ids) + len(group), self.dtype)
            inside = np.ones(len(tokens), bool)
            inside[ends] = False
            tokens[inside] = encoded.ids
            tokens[ends] = self.eos_id
            yield tokens, lengths

    def _mask(self, documents: Sequence[Text]) -> NDArray[np.uint8]:
        parts = []
        for document in documents:
            if document.no_loss:
                flags = self.encoder.no_loss_tokens(document.text, document.no_loss)
            else:
                count = int(self.encoder.encode([document.text]).lengths[0])
                flags = np.zeros(count, np.uint8)
            parts += [flags, np.zeros(1, np.uint8)]  # EOS is trained on
        return np.concatenate(parts)

    def _packed(
        self, tokens: NDArray[Any], lengths: NDArray[np.int64]
    ) -> tuple[NDArray[Any], NDArray[np.int64], list[tuple[int, int, int, int]]]:
        """Returns the packed tokens, the lengths of all sequences, and where each comes from.

        A sequence is a piece of a document or a run of padding. Its origin is the tuple (document,
        offset in `tokens`, offset in the packed tokens, length); document is -1 for padding.
        """
        starts = (np.cumsum(lengths) - lengths).tolist()
        pieces, total = pack(lengths.tolist(), self.block_lengths)
        placed = np.full(total, self.pad_id, self.dtype)
        order = []
        end = 0
        for piece in pieces:
            if piece.offset > end:
                order.append((-1, 0, end, piece.offset - end))
            source = starts[piece.document] + piece.start
            end = piece.offset + piece.length
            placed[piece.offset : end] = tokens[source : source + piece.length]
            order.append((piece.document, source, piece.offset, piece.length))
        if end < total:
            order.append((-1, 0, end, total - end))
        return placed, np.array([length for *_, length in order], np.int64), order

    @staticmethod
    def _packed_mask(
        mask: NDArray[np.uint8], order: Sequence[tuple[int, int, int, int]], total: int
    ) -> NDArray[np.uint8]:
        placed = np.ones(total, np.uint8)
        for document, source, offset, length in order:
            if document >= 0:
                placed[offset : offset + length] = mask[source : source + length]
        return placed


def shuffled(documents: list[Text], key: str) -> list[Text]:
    """Shuffles documents in place with a key, which separates neighbors on disk. Returns them."""
    random.Random(key).shuffle(documents)
    return documents


def write_sums(prefix: Path) -> str:
    """Writes the `.sums` file of a shard, and returns the sha256 of its `.bin` file."""
    digest = hashlib.sha256()
    with prefix.with_name(prefix.name + ".sums").open("wb") as out:
        for data, sums in read_with_checksums(prefix.with_name(prefix.name + ".bin")):
            digest.update(data)
            out.write(sums.tobytes())
    return digest.hexdigest()


def _groups(documents: Sequence[Text]) -> Iterator[Sequence[Text]]:
    first = size = 0
    for number, document in enumerate(documents):
        size += len(document.text)
        if size >= ENCODE_BYTES:
            yield documents[first : number + 1]
            first, size = number + 1, 0
    if first < len(documents):
        yield documents[first:]
