"""From numbers of samples to tensors: tokens, labels, and where documents begin."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data_pipeline.sampling.dealing import Deal
from data_pipeline.sampling.order import Located, SampleOrder
from data_pipeline.store.corpus import open_stream
from data_pipeline.store.manifest import Manifest
from data_pipeline.store.remote import remote_url
from data_pipeline.store.sizes import check_sizes
from data_pipeline.store.streams import TokenStream

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
IGNORED = -100
TOKENS_A_DOCUMENT = 64
"""Documents are expected to be longer than this on average; see `Batch.cu_seqlens`."""
BLANK_DOCUMENT = 128
"""Tokens of each document in a blank sample: short ones cost attention little."""


@dataclass
class Batch:
    """Packed samples.

    tokens: (batch, seq) int64.
    labels: (batch, seq) int64, the next token; IGNORED where that belongs to another document, is
        padding, or is masked by the corpus.
    cu_seqlens: (documents + 1,) int32, starts of documents over the flattened (batch * seq)
        tokens; every sample starts one, and so does every run of padding. Padded at the end with
        batch * seq, so that its length is the same for all batches of a shape unless their
        documents are very short.
    samples: (batch,) int64, the samples' numbers in their stage; of the real ones only, where
        blank samples fill the batch up (`fill_up`).
    documents: (sources,) int64, documents of each source that end in these samples.
    sources: (batch,) int64, the number of each sample's source; 0 for a blank one.
    """

    tokens: Tensor
    labels: Tensor
    cu_seqlens: Tensor
    samples: Ints
    documents: Ints = field(default_factory=lambda: np.zeros(0, np.int64))
    sources: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))

    def digest(self) -> str:
        """sha256 of the tokens."""
        return hashlib.sha256(self.tokens.numpy().tobytes()).hexdigest()


@dataclass(frozen=True)
class Borders:
    """What tells where documents end beside the EOS or the index.

    packed: 0, or the tokens that no document reaches over. pad_id: None where nothing is padded.
    """

    eos_id: int | None
    pad_id: int | None = None
    packed: int = 0

    @classmethod
    def of(cls, manifest: Manifest) -> Borders:
        """Those of a corpus."""
        ids = manifest.tokenizer
        packed = manifest.packed
        eos_id = int(ids["eos_id"]) if manifest.ends_in_eos else None
        return cls(eos_id, int(ids["pad_id"]) if packed else None, max(packed, default=0))

    def find(
        self, tokens: NDArray[np.integer], starts: Ints, begins: Bools
    ) -> tuple[Ints, Bools | None]:
        """Adds to `begins`, (batch, length - 1), where a document or a run of padding begins at
        i + 1. tokens: (batch, length), from `starts` of their streams on.

        Returns how many documents end in each row, (batch,), and where there is padding,
        (batch, length), or None.
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
            begins[row, (-start - 1) % self.packed :: self.packed] = True
        return ended, padding


class BatchReader:
    """Reads any samples of a plan from the shards of a corpus.

    cache_bytes: of a remote corpus on the disk of this machine, null for what is in use. check:
        compare the sizes of all files with the manifest first.

    Raises InputError where a file is not what the manifest says.
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
        self.borders = Borders.of(manifest)
        self.is_remote = bool(remote_url(manifest))
        if check:
            check_sizes(manifest, split, order.sources)
        self.streams = [
            open_stream(manifest, split, source, cache_bytes, check=False)
            for source in order.sources
        ]

    def check_ids(self, most_tokens: int) -> None:
        """Raises InputError where one of the first `most_tokens` tokens of a source is beyond the
        vocabulary."""
        for stream in self.streams:
            stream.check_ids(most_tokens)

    def read(self, stage: int, samples: Sequence[int] | Ints) -> Batch:
        """The samples with these numbers, counted from the stage's start."""
        (batch,) = self.read_all(stage, samples, max(1, len(samples)))
        return batch

    def read_all(self, stage: int, samples: Sequence[int] | Ints, size: int) -> Iterator[Batch]:
        """The same in batches of up to `size` samples; all of them are located at once, and what is
        remote is asked for at once."""
        numbers = np.asarray(samples, np.int64)
        located = self.order.locate(stage, numbers)
        seq_len = self.order.stages[stage].seq_len
        self._prefetch(located, seq_len)
        for first in range(0, len(numbers), size):
            part = slice(first, first + size)
            yield pack(
                self.streams,
                located.source[part],
                located.start[part],
                seq_len,
                numbers[part],
                self.dtype,
                self.borders,
            )

    def _prefetch(self, located: Located, seq_len: int) -> None:
        if not self.is_remote:
            return
        for source in np.unique(located.source).tolist():
            stream = self.streams[source]
            stream.prefetch(located.start[located.source == source], seq_len + 1)


def held_out_samples(manifest: Manifest, source: str, seq_len: int, max_tokens: int) -> int:
    """Returns how many samples the first `max_tokens` of a source's held-out stream make."""
    return min(max_tokens, manifest.source_tokens("held_out")[source] - 1) // seq_len


def held_out_batches(
    manifest: Manifest,
    source: str,
    seq_len: int,
    batch_size: int,
    max_tokens: int,
    part: range | None = None,
) -> Iterator[Batch]:
    """Consecutive samples from the start of a source's held-out stream, up to max_tokens tokens;
    the last batch may be smaller, a last part of a sample is dropped.

    part: the samples to read, all of them where it is None.
    """
    stream = open_stream(manifest, "held_out", source)
    part = (
        part if part is not None else range(held_out_samples(manifest, source, seq_len, max_tokens))
    )
    borders = Borders.of(manifest)
    for first in range(part.start, part.stop, batch_size):
        numbers = np.arange(first, min(first + batch_size, part.stop))
        sources = np.zeros(len(numbers), np.int64)
        starts = numbers * seq_len
        yield pack([stream], sources, starts, seq_len, numbers, np.dtype(manifest.dtype), borders)


def fill_up(batches: Iterable[Batch], deal: Deal, seq_len: int, sources: int) -> list[Batch]:
    """Returns a rank's micro-batches, all of `deal.rows`, as many as every rank has.

    sources: number of sources of the corpus.
    """
    found = [pad(batch, deal.rows) for batch in batches]
    missing = deal.micro_batches - len(found)
    return found + [pad(empty(seq_len, sources), deal.rows) for _ in range(missing)]


def empty(seq_len: int, sources: int) -> Batch:
    """Returns a batch without samples."""
    tokens = torch.zeros((0, seq_len), dtype=torch.int64)
    starts = torch.zeros(1, dtype=torch.int32)
    return Batch(tokens, tokens, starts, np.zeros(0, np.int64), np.zeros(sources, np.int64))


def pad(batch: Batch, rows: int) -> Batch:
    """Returns the batch with blank samples up to `rows`; `samples` and `documents` stay those of
    the real ones."""
    real, seq_len = batch.tokens.shape
    if real == rows:
        return batch
    blank = (rows - real, seq_len)
    starts = batch.cu_seqlens[batch.cu_seqlens < real * seq_len].numpy()
    each = np.arange(0, seq_len, BLANK_DOCUMENT, dtype=np.int32)
    begins = np.arange(real, rows, dtype=np.int32)[:, None] * seq_len + each
    return Batch(
        torch.cat((batch.tokens, torch.zeros(blank, dtype=torch.int64))),
        torch.cat((batch.labels, torch.full(blank, IGNORED, dtype=torch.int64))),
        torch.from_numpy(pad_cu_seqlens(np.concatenate((starts, begins.ravel())), rows, seq_len)),
        batch.samples,
        batch.documents,
        torch.cat((batch.sources, torch.zeros(rows - real, dtype=torch.int64))),
    )


def pack(
    streams: Sequence[TokenStream],
    sources: Ints,
    starts: Ints,
    seq_len: int,
    samples: Ints,
    dtype: np.dtype,
    borders: Borders,
) -> Batch:
    """Reads seq_len tokens and the label of the last one from each place.

    sources, starts, samples: (batch,), the stream, the token in it, and the number of each sample.
    Raises InputError where a shard is damaged or holds an id beyond the vocabulary.
    """
    tokens = np.empty((len(starts), seq_len + 1), dtype)
    begins = np.zeros((len(starts), seq_len), bool)
    chosen = np.unique(sources).tolist()
    masked = any(streams[source].masked for source in chosen)
    mask = np.zeros(tokens.shape, np.uint8) if masked else None
    for source in chosen:
        rows = np.flatnonzero(sources == source)
        streams[source].read(starts[rows], tokens, rows, begins, mask)
    if len(starts):
        _check_vocabulary(streams, sources, starts, tokens)
    ended, padding = borders.find(tokens, starts, begins)
    documents = np.bincount(sources, ended, len(streams)).astype(np.int64)
    labels = tokens[:, 1:].astype(np.int64)
    labels[begins] = IGNORED
    if padding is not None:
        labels[padding[:, 1:]] = IGNORED
    if mask is not None:
        labels[mask[:, 1:] != 0] = IGNORED
    return Batch(
        torch.from_numpy(tokens[:, :-1].astype(np.int64)),
        torch.from_numpy(labels),
        torch.from_numpy(_cu_seqlens(begins)),
        samples,
        documents,
        torch.from_numpy(sources),
    )


def _cu_seqlens(begins: Bools) -> NDArray[np.int32]:
    """(documents + 1,), see Batch. Overwrites the last column of begins, (batch, seq)."""
    begins[:, -1:] = True  # what follows a row is the next row, or the end
    found = np.flatnonzero(begins) + 1
    return pad_cu_seqlens(np.concatenate(([0], found[:-1])), *begins.shape)


def pad_cu_seqlens(starts: NDArray[np.integer], batch: int, seq_len: int) -> NDArray[np.int32]:
    """Returns the starts of all documents with the batch's end after them, as often as makes the
    length that batches of this shape have, see Batch."""
    total = batch * seq_len
    length = total // TOKENS_A_DOCUMENT + batch + 1
    while length <= len(starts):
        length *= 2
    cu_seqlens = np.full(length, total, np.int32)
    cu_seqlens[: len(starts)] = starts
    return cu_seqlens


def _check_vocabulary(
    streams: Sequence[TokenStream], sources: Ints, starts: Ints, tokens: NDArray[np.integer]
) -> None:
    size = streams[0].vocab_size
    if int(tokens.max()) < size and (tokens.dtype.kind == "u" or int(tokens.min()) >= 0):
        return
    for row, source in enumerate(sources.tolist()):
        streams[source].check_vocabulary(int(starts[row]), tokens[row])
