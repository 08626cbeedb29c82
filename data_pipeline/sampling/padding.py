"""Pads micro-batches, so that those of all ranks and steps of a stage have the same shapes.

Every rank runs the same number of micro-batches, and compiled code is specialized to shapes. Blank
samples without targets therefore fill the last micro-batches, and `cu_seqlens` gets a number of
entries that depends on the mean length of the corpus's documents.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import NDArray

from data_pipeline.sampling.batches import IGNORED, Batch
from data_pipeline.sampling.dealing import Deal

BLANK_DOCUMENT_TOKENS = 128
"""Length of the documents in a blank sample. Attention over short documents costs little."""
SPARE_DOCUMENTS = 1.25
"""Factor between the expected number of documents in a micro-batch and the length of cu_seqlens."""
LENGTH_BUCKETS = 3
"""Number of values that `max_seqlen` of padded batches takes: seq_len, its half and its quarter."""


def pad_batches(
    batches: Iterable[Batch], deal: Deal, seq_len: int, sources: int, document_tokens: float
) -> list[Batch]:
    """Pads a rank's micro-batches so that those of all ranks and steps have the same shapes.

    Args:
        batches: Micro-batches with the rank's real samples.
        deal: Distribution of the samples of the step over ranks.
        seq_len: Tokens per sample.
        sources: Number of sources of the corpus.
        document_tokens: Mean length of the documents (`batches.mean_document_tokens`).
    """
    padded = [pad_batch(batch, deal.rows, document_tokens) for batch in batches]
    blank = empty_batch(seq_len, sources)
    missing = deal.micro_batches - len(padded)
    return padded + [pad_batch(blank, deal.rows, document_tokens) for _ in range(missing)]


def empty_batch(seq_len: int, sources: int) -> Batch:
    """Returns a batch without samples."""
    tokens = torch.zeros((0, seq_len), dtype=torch.int64)
    starts = torch.zeros(1, dtype=torch.int32)
    return Batch(tokens, tokens, starts, np.zeros(0, np.int64), np.zeros(sources, np.int64))


def pad_batch(batch: Batch, rows: int, document_tokens: float) -> Batch:
    """Adds blank samples until a batch has `rows` rows, and pads `cu_seqlens`.

    The number of entries of `cu_seqlens` depends on the arguments only, unless a batch has many
    more documents than expected. Attention kernels start as many thread blocks for an entry without
    a document as for a document, so the number is close to that of real documents. `max_seqlen` has
    few values, because compiled code is specialized to each.

    `samples` and `documents` of the batch still describe only the real samples.
    """
    real, seq_len = batch.tokens.shape
    blank = rows - real
    starts = batch.cu_seqlens[:-1].numpy()
    entries = document_entries(rows, seq_len, document_tokens)
    while entries <= len(starts) + blank:
        entries *= 2
    if blank:
        # As many blank documents as there are entries left for them.
        per_sample = (entries - 1 - len(starts)) // blank
        length = max(BLANK_DOCUMENT_TOKENS, -(-seq_len // per_sample))
        in_sample = np.arange(0, seq_len, length, dtype=np.int32)
        blank_starts = np.arange(real, rows, dtype=np.int32)[:, None] * seq_len + in_sample
        starts = np.concatenate((starts, blank_starts.ravel()))
    cu_seqlens, max_seqlen = pad_starts(starts, rows, seq_len, document_tokens)
    shape = (blank, seq_len)
    return Batch(
        torch.cat((batch.tokens, torch.zeros(shape, dtype=torch.int64))),
        torch.cat((batch.labels, torch.full(shape, IGNORED, dtype=torch.int64))),
        torch.from_numpy(cu_seqlens),
        batch.samples,
        batch.documents,
        torch.cat((batch.sources, torch.zeros(blank, dtype=torch.int64))),
        max_seqlen,
    )


def pad_starts(
    starts: NDArray[np.integer], rows: int, seq_len: int, document_tokens: float
) -> tuple[NDArray[np.int32], int]:
    """Returns `cu_seqlens` and `max_seqlen` of a padded batch. starts: starts of its documents."""
    entries = document_entries(rows, seq_len, document_tokens)
    while entries <= len(starts):
        entries *= 2
    cu_seqlens = np.full(entries, rows * seq_len, np.int32)
    cu_seqlens[: len(starts)] = starts
    longest = int(np.diff(cu_seqlens).max(initial=0))
    sizes = [seq_len >> shift for shift in reversed(range(LENGTH_BUCKETS))]
    return cu_seqlens, next(size for size in sizes if size >= longest)


def document_entries(rows: int, seq_len: int, document_tokens: float) -> int:
    """Returns the number of entries of `cu_seqlens` for documents of a mean length."""
    expected = rows * (1 + seq_len / document_tokens)  # each sample starts a document
    return 8 * math.ceil((SPARE_DOCUMENTS * expected + 1) / 8)
