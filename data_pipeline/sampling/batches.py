"""Reads samples by number into tensors of tokens, labels and document boundaries."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data_pipeline.sampling.fim_transform import COUNTS, Part, StageFim
from data_pipeline.sampling.locations import Ints, SampleLocations
from data_pipeline.sampling.order import SampleOrder
from data_pipeline.store.corpus import open_stream
from data_pipeline.store.manifest import Manifest
from data_pipeline.store.remote import remote_url
from data_pipeline.store.sizes import check_sizes
from data_pipeline.store.streams import TokenStream

Bools = NDArray[np.bool_]
Tokens = NDArray[np.integer]
Rearrange = Callable[[Tokens, Bools, Bools | None, NDArray[np.uint8]], Ints]
"""Rearranges tokens, boundaries, padding and masks in place, and returns counts per source."""
NOTHING_MOVED = np.zeros((0, len(COUNTS)), np.int64)
"""`Batch.fim` without fill in the middle."""
IGNORED = -100


@dataclass
class Batch:
    """Samples as tensors, with the boundaries of the documents that are packed into them.

    Attributes:
        tokens: (batch, seq) int64.
        labels: (batch, seq) int64, the next token; IGNORED if that belongs to another document, is
            padding, or is masked by the corpus.
        cu_seqlens: (documents + 1,) int32, starts of documents in the flattened (batch * seq)
            tokens, followed by batch * seq. The start of a sample counts as the start of a
            document, and so does the start of a run of padding. `padding` repeats the last
            entry, so that the batches of a stage have the same number of entries.
        samples: (real samples,) int64, sample numbers in their stage, without blank samples
            (see `padding`).
        documents: (sources,) int64, number of documents per source that end in these samples.
        sources: (batch,) int64, index of each sample's source; 0 for a blank sample.
        max_seqlen: Upper bound of the tokens in a document, known without reading the device; None
            for seq.
        fim: (sources, fim_transform.COUNTS) int64, what fill in the middle has rearranged in these
            samples; empty if it is not used.
        answers: (batch, seq, bytes) uint8, a teacher's answers to the samples in the form that
            `pretrain.teacher_cache.records` decodes; None if the run reads no cache of answers.
    """

    tokens: Tensor
    labels: Tensor
    cu_seqlens: Tensor
    samples: Ints
    documents: Ints = field(default_factory=lambda: np.zeros(0, np.int64))
    sources: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))
    max_seqlen: int | None = None
    fim: Ints = field(default_factory=lambda: NOTHING_MOVED)
    answers: Tensor | None = None

    def to(self, device: torch.device) -> Batch:
        """Returns the batch with its tensors copied to a device, without waiting for the copy."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=True))

    def joined(self) -> Batch:
        """Returns the batch with each sample as one document, for attention across documents.

        The labels stay the same: the first token of a document is never a target.
        """
        rows, seq_len = self.tokens.shape
        starts = torch.arange(0, (rows + 1) * seq_len, seq_len, dtype=torch.int32)
        return replace(self, cu_seqlens=starts, max_seqlen=seq_len)

    def pin_memory(self) -> Batch:
        """Returns the batch with its tensors in pinned memory."""
        return self._map(Tensor.pin_memory)

    def _map(self, change: Callable[[Tensor], Tensor]) -> Batch:
        return replace(
            self,
            tokens=change(self.tokens),
            labels=change(self.labels),
            cu_seqlens=change(self.cu_seqlens),
            sources=change(self.sources),
            answers=None if self.answers is None else change(self.answers),
        )


@dataclass(frozen=True)
class DocumentBoundaries:
    """Settings for finding the boundaries of documents.

    Attributes:
        eos_id: Id of EOS, if it marks all boundaries; None if they have to be read from the index.
        pad_id: Id of padding; None if the corpus has no padding.
        block_tokens: Length of the blocks that documents were packed into. No document crosses the
            boundary of a block. 0 if documents were not packed.
    """

    eos_id: int | None
    pad_id: int | None = None
    block_tokens: int = 0

    @classmethod
    def of(cls, manifest: Manifest) -> DocumentBoundaries:
        """Returns the settings for a corpus."""
        ids = manifest.tokenizer
        packed = manifest.packed
        eos_id = int(ids["eos_id"]) if manifest.ends_in_eos else None
        return cls(eos_id, int(ids["pad_id"]) if packed else None, max(packed, default=0))

    def find(
        self, tokens: NDArray[np.integer], starts: Ints, begins: Bools
    ) -> tuple[Ints, Bools | None]:
        """Finds the positions at which documents and runs of padding start.

        Args:
            tokens: (batch, length) token ids.
            starts: (batch,) offsets of the rows in their streams.
            begins: (batch, length - 1), set to True at [row, i] if a document or a run of padding
                starts at i + 1.

        Returns:
            The number of documents that end in each row, (batch,), and a mask that is True for
            padding, (batch, length), or None if the corpus has no padding.
        """
        if self.eos_id is not None:
            np.equal(tokens[:, :-1], self.eos_id, out=begins)
        if self.pad_id is None:
            return begins.sum(axis=1), None
        padding = tokens == self.pad_id
        if self.pad_id == self.eos_id:  # then only an EOS after an EOS is padding
            padding[:, 1:] &= tokens[:, :-1] == self.eos_id
            begins &= ~padding[:, :-1]
        ended = begins.sum(axis=1)
        begins |= padding[:, 1:] != padding[:, :-1]
        for row, start in enumerate(starts.tolist()):
            begins[row, (-start - 1) % self.block_tokens :: self.block_tokens] = True
        return ended, padding


class BatchReader:
    """Reads samples of a plan from the shards of a corpus.

    Attributes:
        document_tokens: Mean length of the documents of each stage's mixture.
        fim: Fill in the middle of each stage; its `sources` are empty if the stage has none.

    Args:
        manifest: Manifest of the newest edition of the corpus that the order reads.
        order: The order of samples.
        split: `train` or `held_out`.
        cache_bytes: Size of this process's disk cache for remote corpora; None keeps the current
            size.
        check: If True, the sizes of all files are first compared with the manifest.

    Raises:
        InputError: A file differs from the manifest, or its tokenizer lacks the special tokens of
            fill in the middle.
    """

    def __init__(
        self,
        manifest: Manifest,
        order: SampleOrder,
        split: str = "train",
        cache_bytes: int | None = None,
        check: bool = True,
    ) -> None:
        self.order = order
        self.dtype = np.dtype(manifest.dtype)
        self.boundaries = DocumentBoundaries.of(manifest)
        self.document_tokens = [
            mean_document_tokens(manifest, stage.weights, source_tokens=order.tokens_of(number))
            for number, stage in enumerate(order.stages)
        ]
        # Only training samples are rearranged: held-out losses stay comparable.
        self.fim = [StageFim(order, number, manifest) for number in range(len(order.stages))]
        self.is_remote = bool(remote_url(manifest))
        if check:
            check_sizes(manifest, split, order.sources)
        self.streams = [
            open_stream(manifest, split, source, cache_bytes, check=False)
            for source in order.sources
        ]

    def check_ids(self, max_tokens: int) -> None:
        """Raises InputError if one of the first `max_tokens` ids of a source is not valid."""
        for stream in self.streams:
            stream.check_ids(max_tokens)

    def read(self, stage: int, samples: Sequence[int] | Ints) -> Batch:
        """Returns samples of a stage, which are numbered from its start, as one batch."""
        (batch,) = self.read_all(stage, samples, max(1, len(samples)))
        return batch

    def read_all(self, stage: int, samples: Sequence[int] | Ints, size: int) -> Iterator[Batch]:
        """Yields samples of a stage in batches of up to `size`, after prefetching all of them."""
        numbers = np.asarray(samples, np.int64)
        located = self.order.locate(stage, numbers)
        seq_len = self.order.stages[stage].seq_len
        self._prefetch(located, seq_len)
        fim = self.fim[stage]
        for first in range(0, len(numbers), size):
            part = slice(first, first + size)
            yield pack(
                self.streams,
                located.source[part],
                located.start[part],
                seq_len,
                numbers[part],
                self.dtype,
                self.boundaries,
                partial(fim.apply, located[part]) if fim.sources else None,
            )

    def fim_parts(self, stage: int, sample: int) -> list[Part]:
        """Returns the parts of documents in a sample, and how they are rearranged.

        The result is empty if the source of the sample has no fill in the middle.
        """
        located = self.order.locate(stage, np.array([sample]))
        if int(located.source[0]) not in self.fim[stage].sources:
            return []
        found: list[Part] = []

        def collect(tokens: Tokens, begins: Bools, padding: Bools | None, mask: object) -> Ints:
            _, _, parts = self.fim[stage].arrange(located, 0, tokens, begins, padding)
            found.extend(parts)
            return NOTHING_MOVED

        seq_len = self.order.stages[stage].seq_len
        numbers = np.array([sample])
        pack(
            self.streams,
            located.source,
            located.start,
            seq_len,
            numbers,
            self.dtype,
            self.boundaries,
            collect,
        )
        return found

    def _prefetch(self, located: SampleLocations, seq_len: int) -> None:
        if not self.is_remote:
            return
        for source in np.unique(located.source).tolist():
            stream = self.streams[source]
            stream.prefetch(located.start[located.source == source], seq_len + 1)


def mean_document_tokens(
    manifest: Manifest,
    weights: Mapping[str, float],
    split: str = "train",
    source_tokens: Mapping[str, int] | None = None,
) -> float:
    """Returns the mean length of documents of a mixture.

    Args:
        manifest: Manifest of the corpus.
        weights: Weight per source.
        split: `train` or `held_out`.
        source_tokens: Tokens per source in an edition, whose shards are counted; None for all.
    """
    total, documents = sum(weights.values()), 0.0
    for source, weight in weights.items():
        shards = manifest.shards(split, source)
        if source_tokens is not None:
            ends = itertools.accumulate(shard["tokens"] for shard in shards)
            limit = source_tokens.get(source, 0)
            shards = [shard for shard, end in zip(shards, ends, strict=True) if end <= limit]
        tokens = sum(shard["tokens"] for shard in shards)
        documents += weight * sum(shard["documents"] for shard in shards) / max(1, tokens)
    return total / documents if documents else math.inf


def held_out_samples(manifest: Manifest, source: str, seq_len: int, max_tokens: int) -> int:
    """Returns the number of samples in the first `max_tokens` of a source's held-out stream."""
    return min(max_tokens, manifest.source_tokens("held_out")[source] - 1) // seq_len


def held_out_batches(
    manifest: Manifest,
    source: str,
    seq_len: int,
    batch_size: int,
    max_tokens: int,
    part: range | None = None,
) -> Iterator[Batch]:
    """Yields batches of consecutive samples from the start of a source's held-out stream.

    The last batch may be smaller, and tokens at the end that do not fill a sample are dropped.

    Args:
        manifest: Manifest of the corpus.
        source: Name of the source.
        seq_len: Tokens per sample.
        batch_size: Samples per batch.
        max_tokens: Tokens of the stream to use.
        part: Numbers of the samples to read; None reads all of them.
    """
    stream = open_stream(manifest, "held_out", source)
    part = (
        part if part is not None else range(held_out_samples(manifest, source, seq_len, max_tokens))
    )
    boundaries = DocumentBoundaries.of(manifest)
    dtype = np.dtype(manifest.dtype)
    for first in range(part.start, part.stop, batch_size):
        numbers = np.arange(first, min(first + batch_size, part.stop))
        sources = np.zeros(len(numbers), np.int64)
        yield pack([stream], sources, numbers * seq_len, seq_len, numbers, dtype, boundaries)


def pack(
    streams: Sequence[TokenStream],
    sources: Ints,
    starts: Ints,
    seq_len: int,
    samples: Ints,
    dtype: np.dtype,
    boundaries: DocumentBoundaries,
    rearrange: Rearrange | None = None,
) -> Batch:
    """Reads samples from token streams, each of `seq_len` tokens and one more for the last label.

    Args:
        streams: Token stream of each source.
        sources: (batch,) index of each sample's stream.
        starts: (batch,) offset of each sample in its stream.
        seq_len: Tokens per sample.
        samples: (batch,) sample numbers.
        dtype: Type of the token ids.
        boundaries: Settings for finding the boundaries of documents.
        rearrange: Rearranges documents for fill in the middle (`StageFim.apply`); None for none.

    Raises:
        InputError: A shard is damaged or contains an id outside the vocabulary.
    """
    tokens = np.empty((len(starts), seq_len + 1), dtype)
    begins = np.zeros((len(starts), seq_len), bool)
    used = np.unique(sources).tolist()
    masked = rearrange is not None or any(streams[source].masked for source in used)
    mask = np.zeros(tokens.shape, np.uint8) if masked else None
    for source in used:
        rows = np.flatnonzero(sources == source)
        streams[source].read(starts[rows], tokens, rows, begins, mask)
    if len(starts):
        _check_vocabulary(streams, sources, starts, tokens)
    ended, padding = boundaries.find(tokens, starts, begins)
    documents = np.bincount(sources, ended, len(streams)).astype(np.int64)
    fim = NOTHING_MOVED
    if rearrange is not None and mask is not None:
        fim = rearrange(tokens, begins, padding, mask)
    labels = tokens[:, 1:].astype(np.int64)
    labels[begins] = IGNORED
    if padding is not None:
        labels[padding[:, 1:]] = IGNORED
    if mask is not None:
        labels[mask[:, 1:] != 0] = IGNORED
    cu_seqlens = _cu_seqlens(begins)
    return Batch(
        torch.from_numpy(tokens[:, :-1].astype(np.int64)),
        torch.from_numpy(labels),
        torch.from_numpy(cu_seqlens),
        samples,
        documents,
        torch.from_numpy(sources),
        int(np.diff(cu_seqlens).max(initial=0)),
        fim,
    )


def _cu_seqlens(begins: Bools) -> NDArray[np.int32]:
    """Returns `Batch.cu_seqlens`. Overwrites the last column of `begins`, (batch, seq)."""
    begins[:, -1:] = True  # a row is followed by the next row, or by the end
    return np.concatenate(([0], np.flatnonzero(begins) + 1)).astype(np.int32)


def _check_vocabulary(
    streams: Sequence[TokenStream], sources: Ints, starts: Ints, tokens: NDArray[np.integer]
) -> None:
    size = streams[0].vocab_size
    if int(tokens.max()) < size and (tokens.dtype.kind == "u" or int(tokens.min()) >= 0):
        return
    for row, source in enumerate(sources.tolist()):
        streams[source].check_vocabulary(int(starts[row]), tokens[row])
