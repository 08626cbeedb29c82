"""Padded batches have the shapes of their stage, and hardly more documents than they contain."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from data_pipeline.sampling.batches import (
    IGNORED,
    Batch,
    BatchReader,
    held_out_batches,
    mean_document_tokens,
)
from data_pipeline.sampling.order import SampleOrder
from data_pipeline.sampling.padding import (
    BLANK_DOCUMENT_TOKENS,
    LENGTH_BUCKETS,
    document_entries,
    empty_batch,
    pad_batch,
)
from data_pipeline.sampling.stage import Stage


@pytest.mark.parametrize("seq_len", [32, 320])
def test_blank_samples_have_no_targets_and_short_documents(corpus, seq_len):
    whole = next(held_out_batches(corpus, "code", seq_len, 3, 10_000))
    for batch in (whole, empty_batch(seq_len, 2)):
        real = len(batch.tokens)
        padded = pad_batch(batch, real + 4, 16)
        assert torch.equal(padded.tokens[:real], batch.tokens)
        assert torch.equal(padded.labels[:real], batch.labels)
        assert (padded.labels[real:] == IGNORED).all()
        assert padded.sources.tolist() == [0] * (real + 4)
        starts, total = padded.cu_seqlens, (real + 4) * seq_len
        assert starts.dtype == torch.int32
        lengths = starts.diff()
        assert (lengths >= 0).all()
        assert (int(starts[0]), int(starts[-1])) == (0, total)
        assert set(range(0, total, seq_len)) <= set(starts.tolist())
        blank = lengths[starts[:-1] >= real * seq_len]
        assert int(blank.max()) <= min(seq_len, BLANK_DOCUMENT_TOKENS)
        assert torch.equal(starts[: len(batch.cu_seqlens)], batch.cu_seqlens)
        assert padded.max_seqlen is not None
        assert int(lengths.max()) <= padded.max_seqlen <= seq_len
        assert padded.samples is batch.samples
        assert padded.documents is batch.documents


def test_all_batches_of_a_stage_have_one_shape(corpus):
    """Real ones, partly blank ones and blank ones, so that nothing is compiled again."""
    order = SampleOrder(corpus.source_tokens("train"), [Stage(64, 600, {"code": 1})], 3)
    reader = BatchReader(corpus, order)
    (length,) = reader.document_tokens
    shards = corpus.shards("train", "code")
    counts = [sum(shard[key] for shard in shards) for key in ("tokens", "documents")]
    assert length == pytest.approx(counts[0] / counts[1])
    batches = [reader.read(0, range(first, first + 8)) for first in range(0, 600, 8)]
    batches += [reader.read(0, range(5)), empty_batch(64, 1)]
    padded = [pad_batch(batch, 8, length) for batch in batches]
    assert {len(batch.cu_seqlens) for batch in padded} == {document_entries(8, 64, length)}
    assert len({batch.max_seqlen for batch in padded}) <= LENGTH_BUCKETS


def batch_of(starts, rows, seq_len):
    tokens = torch.zeros((rows, seq_len), dtype=torch.int64)
    cu_seqlens = torch.tensor([*starts, rows * seq_len], dtype=torch.int32)
    return Batch(tokens, tokens, cu_seqlens, np.arange(rows), max_seqlen=seq_len)


def test_the_kernel_is_told_of_hardly_more_documents_than_there_are():
    """16 documents of 1,024 tokens used to be announced as 264."""
    starts = range(0, 8 * 2048, 1024)
    padded = pad_batch(batch_of(starts, 8, 2048), 8, 1024)
    assert len(starts) == 16
    assert 17 <= len(padded.cu_seqlens) <= 32
    assert padded.max_seqlen == 1024
    assert pad_batch(batch_of(range(0, 16384, 64), 1, 16384), 1, 64).max_seqlen == 4096


def test_more_documents_than_expected_still_fit():
    starts = list(range(0, 512, 2))
    padded = pad_batch(batch_of(starts, 2, 256), 3, 128)
    assert padded.cu_seqlens[:256].tolist() == starts
    assert padded.cu_seqlens[-1] == 3 * 256
    assert len(padded.cu_seqlens) % document_entries(3, 256, 128) == 0


def test_the_mean_length_follows_the_mixture(corpus):
    code, prose = (mean_document_tokens(corpus, {name: 1}) for name in ("code", "prose"))
    mixed = mean_document_tokens(corpus, {"code": 1, "prose": 3})
    assert mixed == pytest.approx(4 / (1 / code + 3 / prose))
    assert mean_document_tokens(corpus, {"code": 1}, "no split") == math.inf
