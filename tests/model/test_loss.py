"""The chunked loss equals the plain one, whole or with the vocabulary in shards."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from model.loss import IGNORED, linear_cross_entropy, losses_and_gradient
from tests.model.largest import Largest


def inputs(dtype=torch.float64, tokens=50, hidden=16, vocab=40):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(tokens, hidden, generator=generator, dtype=dtype).requires_grad_()
    weight = torch.randn(vocab, hidden, generator=generator, dtype=dtype).requires_grad_()
    labels = torch.randint(0, vocab, (tokens,), generator=generator)
    labels[::7] = IGNORED
    return x, weight, labels


@pytest.mark.parametrize("chunk_tokens", [1, 7, 50, 1000])
def test_chunks_equal_the_whole(chunk_tokens):
    x, weight, labels = inputs(torch.float32)
    loss, _ = linear_cross_entropy(x, weight, labels, chunk_tokens=chunk_tokens)
    expected = F.cross_entropy(x @ weight.t(), labels, reduction="sum", ignore_index=IGNORED)
    torch.testing.assert_close(loss, expected)
    ours = torch.autograd.grad(loss * 3, (x, weight))
    theirs = torch.autograd.grad(expected * 3, (x, weight))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("chunk_tokens", [7, 1000])
def test_what_a_compiler_gets_is_the_same(chunk_tokens, dtype):
    x, weight, labels = inputs(torch.float32)
    x, weight = (part.detach().to(dtype).requires_grad_() for part in (x, weight))
    ours, theirs = (
        linear_cross_entropy(x, weight, labels, None, compiled, chunk_tokens)
        for compiled in (losses_and_gradient, None)
    )
    torch.testing.assert_close(ours, theirs)
    grads = (torch.autograd.grad(loss, (x, weight)) for loss, _ in (ours, theirs))
    torch.testing.assert_close(*grads)


def squared(logsumexp):
    """0.01 * logsumexp^2, and its derivative."""
    return 0.01 * logsumexp.square(), 0.02 * logsumexp


@pytest.mark.parametrize("compiled", [None, losses_and_gradient])
@pytest.mark.parametrize("chunk_tokens", [7, 1000])
def test_a_penalty_on_the_logsumexp_equals_autograd(chunk_tokens, compiled):
    x, weight, labels = inputs(torch.float32)
    loss, losses, terms = linear_cross_entropy(
        x, weight, labels, None, compiled, chunk_tokens, squared
    )
    logits, counted = x @ weight.t(), labels != IGNORED
    entropy = F.cross_entropy(logits, labels, reduction="none", ignore_index=IGNORED)
    penalty = 0.01 * logits.logsumexp(-1).square() * counted
    torch.testing.assert_close(losses, entropy)
    torch.testing.assert_close(terms, penalty)
    ours = torch.autograd.grad(loss * 3, (x, weight))
    theirs = torch.autograd.grad((entropy + penalty).sum() * 3, (x, weight))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("compiled", [None, losses_and_gradient])
@pytest.mark.parametrize("penalty", [None, squared])
def test_a_bound_of_the_logits_equals_autograd(penalty, compiled):
    x, weight, labels = inputs(torch.float32)
    cap = 2.5
    loss, *_ = linear_cross_entropy(x, weight, labels, None, compiled, 7, penalty, cap)
    logits, counted = cap * torch.tanh(x @ weight.t() / cap), labels != IGNORED
    expected = F.cross_entropy(logits, labels, reduction="sum", ignore_index=IGNORED)
    if penalty:
        expected = expected + (0.01 * logits.logsumexp(-1).square() * counted).sum()
    torch.testing.assert_close(loss, expected)
    ours = torch.autograd.grad(loss * 3, (x, weight))
    theirs = torch.autograd.grad(expected * 3, (x, weight))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_without_targets_the_loss_and_its_gradients_are_zero():
    x, weight, labels = inputs(torch.float32)
    loss, _ = linear_cross_entropy(x, weight, torch.full_like(labels, IGNORED))
    loss.backward()
    assert loss == 0
    assert not x.grad.any()
    assert not weight.grad.any()


def test_no_gradients_are_made_where_none_are_wanted():
    x, weight, labels = inputs(torch.float32)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        loss, _ = linear_cross_entropy(x, weight, labels)
    assert counter.get_total_flops() == 2 * x.shape[0] * weight.numel()  # the logits, no more
    expected = F.cross_entropy(x @ weight.t(), labels, reduction="sum", ignore_index=IGNORED)
    torch.testing.assert_close(loss, expected.detach())


def test_large_logits_do_not_overflow():
    x, weight, labels = inputs(torch.float32)
    loss, _ = linear_cross_entropy(x * 1e4, weight, labels)
    expected = F.cross_entropy(x * 1e4 @ weight.t(), labels, reduction="sum")
    torch.testing.assert_close(loss, expected)


def test_peak_memory_does_not_hold_the_logits():
    tokens, vocab = 4096, 4096
    x, weight, labels = inputs(torch.float32, tokens, 8, vocab)
    with Largest() as largest:
        linear_cross_entropy(x, weight, labels, chunk_tokens=256)[0].backward()
    assert largest.elements <= 256 * vocab
