"""Writes shards in Megatron-core's format: `.bin`, `.idx`, and beside them our own tables.

Documents of a shard are shuffled by a key, encoded in large groups, and either put end to end or
fitted into sequences. `.docs.parquet` names the file and position of each, `.sums` holds the
checksums of blocks, `.mask` marks tokens that are not trained on, where there are any.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_pipeline.store.checksums import read_with_checksums, sha256_of_file
from data_pipeline.store.index_file import write_index
from data_pipeline.text.selection import Text
from data_pipeline.tokenizing.documents import write_names
from data_pipeline.tokenizing.encoder import Encoder
from data_pipeline.tokenizing.packing import fit

ENCODE_BYTES = 4_000_000
"""Text that is encoded in one call."""


class ShardWriter:
    """Writes shards of one tokenizer. lengths: what documents are fitted into, or empty."""

    def __init__(
        self, encoder: Encoder, dtype: str, eos_id: int, pad_id: int, lengths: Sequence[int]
    ) -> None:
        self.encoder = encoder
        self.dtype = np.dtype(dtype)
        self.eos_id = eos_id
        self.pad_id = pad_id
        self.lengths = list(lengths)

    def write(self, prefix: Path, documents: Sequence[Text]) -> dict[str, Any]:
        """Writes one shard; returns its entry of the manifest. prefix: `<folder>/<split>/<name>`.

        Raises EncoderDiffers, and OSError where the disk is full.
        """
        prefix.parent.mkdir(parents=True, exist_ok=True)
        masked = any(document.no_loss for document in documents)
        files = [document.file for document in documents]
        positions = [document.position for document in documents]
        masks: list[NDArray[np.uint8]] = []
        parts: Iterable[tuple[NDArray[Any], NDArray[np.int64]]]
        if self.lengths:
            encoded = list(self._encoded(documents))
            tokens, lengths, order = self._fitted(
                np.concatenate([ids for ids, _ in encoded]),
                np.concatenate([lengths for _, lengths in encoded]),
            )
            if masked:
                masks = [self._fitted_mask(self._mask(documents), order, len(tokens))]
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
            "bytes": sum(map(utf8_bytes, documents)),
            "sha256": write_sums(prefix),
            "idx_sha256": sha256_of_file(prefix.with_name(prefix.name + ".idx")),
            "sums": True,
            "masked": masked,
        }

    def _write_tokens(
        self, prefix: Path, parts: Iterable[tuple[NDArray[Any], NDArray[np.int64]]]
    ) -> NDArray[np.int64]:
        """Writes `.bin` and `.idx`; returns the sequences' lengths."""
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
        """Token ids with an EOS after each document, group by group, and their lengths."""
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
            parts += [flags, np.zeros(1, np.uint8)]  # the end of a document is learnt
        return np.concatenate(parts)

    def _fitted(
        self, tokens: NDArray[Any], lengths: NDArray[np.int64]
    ) -> tuple[NDArray[Any], NDArray[np.int64], list[tuple[int, int, int, int]]]:
        """Tokens in their places and the lengths of all sequences, padding among them; and per
        sequence (document or -1, offset in the source tokens, offset, length)."""
        starts = (np.cumsum(lengths) - lengths).tolist()
        pieces, total = fit(lengths.tolist(), self.lengths)
        placed = np.full(total, self.pad_id, self.dtype)
        order = []
        at = 0
        for piece in pieces:
            if piece.offset > at:
                order.append((-1, 0, at, piece.offset - at))
            source = starts[piece.document] + piece.start
            at = piece.offset + piece.length
            placed[piece.offset : at] = tokens[source : source + piece.length]
            order.append((piece.document, source, piece.offset, piece.length))
        if at < total:
            order.append((-1, 0, at, total - at))
        return placed, np.array([length for *_, length in order], np.int64), order

    @staticmethod
    def _fitted_mask(
        mask: NDArray[np.uint8], order: Sequence[tuple[int, int, int, int]], total: int
    ) -> NDArray[np.uint8]:
        placed = np.ones(total, np.uint8)
        for document, source, offset, length in order:
            if document >= 0:
                placed[offset : offset + length] = mask[source : source + length]
        return placed


def shuffled(documents: list[Text], key: str) -> list[Text]:
    """The documents in an order of their own: neighbours on disk are spread over the shard."""
    random.Random(key).shuffle(documents)
    return documents


def utf8_bytes(document: Text) -> int:
    """Size of the text of a document."""
    text = document.text
    return len(text) if text.isascii() else len(text.encode())


def write_sums(prefix: Path) -> str:
    """Writes `.sums` of a shard's `.bin`; returns its sha256."""
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
