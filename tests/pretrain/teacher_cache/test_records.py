"""The stored form of answers: its size, its rounding and the hashes of contexts."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from data_pipeline.sampling.batches import Batch
from data_pipeline.sampling.padding import pad_batch
from pretrain.teacher_cache.records import (
    ERROR_NATS,
    LEAST,
    RecordForm,
    as_bytes,
    context_hashes,
    decode,
    encode,
)


@pytest.mark.parametrize(("vocab_size", "top_k"), [(260, 8), (70_000, 64), (12, 12)])
@pytest.mark.parametrize("scale", [0.1, 3.0, 60.0])
def test_values_are_read_to_the_stated_error(vocab_size, top_k, scale):
    """Flat, ordinary and extreme distributions, with ids of two and of four bytes."""
    torch.manual_seed(0)
    exact = (torch.randn(2, 16, vocab_size, dtype=torch.float64) * scale).log_softmax(-1)
    values, ids = exact.topk(top_k)
    rest = exact.scatter(-1, ids, -torch.inf).logsumexp(-1)
    form = RecordForm(16, top_k, vocab_size)
    shuffled = torch.randperm(top_k)
    records = encode(
        *(form, np.arange(2, dtype=np.uint64)),
        *(ids[..., shuffled], values[..., shuffled].float(), rest.float()),
    )
    assert records.nbytes == 2 * form.record_bytes
    found, log_probabilities, log_rest = decode(form, as_bytes(records, 2))
    assert torch.equal(found.sort(-1).values, ids.sort(-1).values)
    assert (log_probabilities.diff(dim=-1) <= 0).all()
    expressed = exact.gather(-1, found) > LEAST
    errors = (log_probabilities - exact.gather(-1, found)).abs()
    assert errors[expressed].max() < ERROR_NATS
    expressed = rest > LEAST
    assert ((log_rest - rest).abs()[expressed] < ERROR_NATS).all()
    assert (log_rest[rest == -torch.inf] == -torch.inf).all()
    total = log_probabilities.double().exp().sum(-1) + log_rest.double().exp()
    assert (total - 1).abs().max() < 1e-6


def test_the_order_of_equal_probabilities_is_that_of_their_ids():
    form = RecordForm(1, 4, 300)
    values = torch.tensor([[[-1.0, -2.0, -2.0, -2.0]]])
    rest = torch.full((1, 1), -1.5)
    context = np.zeros(1, np.uint64)
    one = encode(form, context, torch.tensor([[[7, 9, 5, 200]]]), values, rest)
    other = encode(form, context, torch.tensor([[[7, 200, 9, 5]]]), values, rest)
    assert one.tobytes() == other.tobytes()
    assert decode(form, as_bytes(one, 1))[0].tolist() == [[[7, 5, 9, 200]]]


def test_blank_rows_have_finite_values():
    form = RecordForm(3, 4, 300)
    _, log_probabilities, log_rest = decode(form, as_bytes(np.zeros(0, form.dtype), 2))
    assert log_probabilities.shape == (2, 3, 4)
    assert torch.isfinite(log_probabilities).all()
    assert torch.isfinite(log_rest).all()


def test_bytes_per_token():
    assert RecordForm(2048, 64, 32_000).position_bytes == 258
    assert RecordForm(2048, 64, 128_000).position_bytes == 386
    assert RecordForm(2048, 64, 32_000).bytes_per_token == pytest.approx(258.04, abs=0.01)


def test_hashes_cover_tokens_and_documents_and_ignore_padding():
    tokens = torch.arange(12).view(2, 6)
    starts = torch.tensor([0, 2, 6, 12], dtype=torch.int32)
    batch = Batch(tokens, tokens, starts, np.arange(2), np.zeros(1, np.int64))
    whole = context_hashes(batch)
    assert len(set(whole.tolist())) == 2
    batch.sources = torch.zeros(2, dtype=torch.int64)
    assert context_hashes(pad_batch(batch, 4, 6.0)).tolist() == whole.tolist()
    other = replace(batch, tokens=tokens + (tokens == 7))
    assert (context_hashes(other) == whole).tolist() == [True, False]
    assert (context_hashes(batch.joined()) == whole).tolist() == [False, True]
    alone = Batch(tokens[1:], tokens[1:], torch.tensor([0, 6], dtype=torch.int32), np.arange(1))
    assert context_hashes(alone).tolist() == whole[1:].tolist()
