"""From numbers of samples to tensors: tokens, labels, and where documents begin."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data_pipeline.manifest import Manifest
from data_pipeline.order import SampleOrder
from data_pipeline.shards import Shard, TokenStream

Ints = NDArray[np.int64]
IGNORED = -100
TOKENS_A_DOCUMENT = 64
"""Documents are expected to be longer than this on average; see `Batch.cu_seqlens`."""


@dataclass
class Batch:
    """Packed samples.

    tokens: (batch, seq) int64.
    labels: (batch, seq) int64, the next token; IGNORED where that belongs to another document.
    cu_seqlens: (documents + 1,) int32, starts of documents over the flattened (batch * seq)
        tokens; every sample starts one. Padded at the end with batch * seq, so that its length is
        the same for all batches of a shape unless their documents are very short.
    samples: (batch,) int64, the samples' numbers in their stage.
    """

    tokens: Tensor
    labels: Tensor
    cu_seqlens: Tensor
    samples: Ints

    def digest(self) -> str:
        """sha256 of the tokens."""
        return hashlib.sha256(self.tokens.numpy().tobytes()).hexdigest()


class BatchReader:
    """Reads any samples of a plan from the shards of a corpus."""

    def __init__(self, manifest: Manifest, order: SampleOrder, split: str = "train") -> None:
        self.order = order
        self.streams = [open_stream(manifest, split, source) for source in order.sources]

    def check_ids(self, most_tokens: int) -> None:
        """Raises InputError where one of the first `most_tokens` tokens of a source is beyond the
        vocabulary."""
        for stream in self.streams:
            stream.check_ids(most_tokens)

    def read(self, stage: int, samples: Sequence[int] | Ints) -> Batch:
        """The samples with these numbers, counted from the stage's start."""
        numbers = np.asarray(samples, np.int64)
        located = self.order.locate(stage, numbers)
        places = [
            (self.streams[source], int(start))
            for source, start in zip(located.source, located.start, strict=True)
        ]
        return pack(places, self.order.stages[stage].seq_len, numbers)


def held_out_batches(
    manifest: Manifest, source: str, seq_len: int, batch_size: int, max_tokens: int
) -> Iterator[Batch]:
    """Consecutive samples from the start of a source's held-out stream, up to max_tokens tokens;
    the last batch may be smaller, a last part of a sample is dropped."""
    stream = open_stream(manifest, "held_out", source)
    count = min(max_tokens, len(stream) - 1) // seq_len
    for first in range(0, count, batch_size):
        numbers = np.arange(first, min(first + batch_size, count))
        yield pack([(stream, int(n) * seq_len) for n in numbers], seq_len, numbers)


def open_stream(manifest: Manifest, split: str, source: str) -> TokenStream:
    """All shards of a source, their headers and sizes checked."""
    shards = [
        Shard(manifest.folder / entry["file"], manifest.dtype)
        for entry in manifest.shards(split, source)
    ]
    return TokenStream(shards, manifest.vocab_size)


def pack(places: Sequence[tuple[TokenStream, int]], seq_len: int, samples: Ints) -> Batch:
    """Reads seq_len tokens and the label of the last one from each place."""
    rows = np.empty((len(places), seq_len + 1), np.int64)
    labels = np.empty((len(places), seq_len), np.int64)
    starts = []
    for number, (stream, offset) in enumerate(places):
        borders = stream.read(offset, rows[number])
        labels[number] = rows[number, 1:]
        labels[number, borders[borders > 0] - 1] = IGNORED
        inside = borders[(borders > 0) & (borders < seq_len)]
        starts.append(np.concatenate(([0], inside)) + number * seq_len)
    found = np.concatenate(starts)
    total = len(places) * seq_len
    length = total // TOKENS_A_DOCUMENT + len(places) + 1
    while length <= len(found):
        length *= 2
    cu_seqlens = np.full(length, total, np.int32)
    cu_seqlens[: len(found)] = found
    return Batch(
        torch.from_numpy(np.ascontiguousarray(rows[:, :-1])),
        torch.from_numpy(labels),
        torch.from_numpy(cu_seqlens),
        samples,
    )
