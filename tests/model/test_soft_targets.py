"""The chunked loss against a teacher's answers equals plain torch on whole logits."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from model.logits import TopK, top_answers
from model.loss import IGNORED, linear_cross_entropy
from model.soft_targets import SoftTargets
from tests.model.largest import Largest
from tests.model.test_loss import inputs, squared


def plain(
    logits: Tensor, answers: tuple[Tensor, Tensor, Tensor], temperature: float
) -> tuple[Tensor, Tensor]:
    """Returns T^2 * KL and agreement per position from whole logits, by the definition."""
    ids, log_p, log_rest = answers
    log_q = logits.log_softmax(-1)
    others = torch.ones_like(logits, dtype=torch.bool).scatter(1, ids, False)
    q_rest = torch.where(others, log_q, -torch.inf).logsumexp(1, keepdim=True)
    ours = (torch.cat((log_q.gather(1, ids), q_rest), 1) / temperature).log_softmax(1)
    theirs = (torch.cat((log_p, log_rest[:, None]), 1) / temperature).softmax(1)
    divergence = F.kl_div(ours, theirs, reduction="none").sum(1)
    return temperature**2 * divergence, (logits.argmax(1) == ids[:, 0]).float()


def teacher_answers(k, tokens=50, hidden=16, vocab=40, softcap=None, **options):
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(tokens, hidden, generator=generator)
    weight = torch.randn(vocab, hidden, generator=generator)
    logits = x @ weight.t()
    logits = logits if softcap is None else softcap * torch.tanh(logits / softcap)
    return logits, top_answers(x, weight, TopK(k, vocab), softcap=softcap, **options)


@pytest.mark.parametrize("chunk_tokens", [7, 1000])
@pytest.mark.parametrize("softcap", [None, 2.5])
def test_answers_are_the_most_probable_tokens_and_the_rest(softcap, chunk_tokens):
    logits, (ids, scores, rest) = teacher_answers(5, softcap=softcap, chunk_tokens=chunk_tokens)
    expected, order = logits.double().log_softmax(1).sort(descending=True)
    assert torch.equal(ids, order[:, :5])
    torch.testing.assert_close(scores.double(), expected[:, :5], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(rest.double(), expected[:, 5:].logsumexp(1), rtol=1e-5, atol=1e-5)


def test_padding_of_the_vocabulary_is_no_answer_but_part_of_the_rest():
    generator = torch.Generator().manual_seed(7)
    x, weight = (torch.randn(n, 16, generator=generator) for n in (50, 40))
    ids, scores, rest = top_answers(x, weight, TopK(5, 30))
    assert int(ids.max()) < 30
    torch.testing.assert_close(scores.exp().sum(1) + rest.exp(), torch.ones(50))
    log_p = (x @ weight.t()).log_softmax(1)
    torch.testing.assert_close(scores, log_p.gather(1, ids))


@pytest.mark.parametrize("chunk_tokens", [7, 1000])
@pytest.mark.parametrize("k", [1, 5, 39])
@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize(("penalty", "softcap"), [(None, None), (squared, 2.5)])
def test_loss_and_gradients_equal_plain_torch(penalty, softcap, temperature, k, chunk_tokens):
    x, weight, labels = inputs(torch.float32)
    answers = teacher_answers(k)[1]
    soft = replace(SoftTargets(*answers), weight=0.7, label_weight=0.4, temperature=temperature)
    loss, entropies, *terms = linear_cross_entropy(
        x, weight, labels, None, None, chunk_tokens, penalty, softcap, soft
    )
    logits, counted = x @ weight.t(), labels != IGNORED
    logits = logits if softcap is None else softcap * torch.tanh(logits / softcap)
    entropy = F.cross_entropy(logits, labels, reduction="none", ignore_index=IGNORED)
    divergence, agreement = plain(logits, answers, temperature)
    expected = 0.4 * entropy.sum() + 0.7 * (divergence * counted).sum()
    if penalty:
        expected = expected + (squared(logits.logsumexp(-1))[0] * counted).sum()
    torch.testing.assert_close(entropies, entropy)
    torch.testing.assert_close(terms[-2], divergence.detach() * counted, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(terms[-1], agreement * counted)
    torch.testing.assert_close(loss, expected)
    ours = torch.autograd.grad(loss * 3, (x, weight))
    theirs = torch.autograd.grad(expected * 3, (x, weight))
    for a, b in zip(ours, theirs, strict=True):
        assert torch.dist(a, b) < 1e-5 * b.norm()


def test_of_the_whole_vocabulary_it_is_the_loss_of_hinton():
    x, weight, labels = inputs(torch.float32)
    teacher, answers = teacher_answers(40)
    labels = labels.clamp(min=0)
    soft = replace(SoftTargets(*answers), label_weight=0.0, temperature=3.0)
    loss, *_ = linear_cross_entropy(x, weight, labels, soft_targets=soft)
    logits = x @ weight.t()
    expected = 9 * F.kl_div(
        (logits / 3).log_softmax(1), (teacher / 3).log_softmax(1), reduction="sum", log_target=True
    )
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize("scale", [1.0, 1e3])
def test_a_student_with_the_teachers_logits_has_no_loss(scale):
    generator = torch.Generator().manual_seed(7)
    x, weight = (torch.randn(n, 16, generator=generator) * scale**0.5 for n in (50, 40))
    soft = SoftTargets(*top_answers(x, weight, TopK(5, 40)), 1.0, 0.0, 2.0)
    weight.requires_grad_()
    labels = torch.zeros(50, dtype=torch.int64)
    loss, _, _, agreement = linear_cross_entropy(x, weight, labels, soft_targets=soft)
    loss.backward()
    assert abs(float(loss.detach())) < 1e-4
    assert weight.grad.abs().max() < 1e-3 * scale**0.5
    assert agreement.all()


def test_peak_memory_does_not_hold_the_logits():
    tokens, vocab = 2048, 2048
    x, weight, labels = inputs(torch.float32, tokens, 8, vocab)

    with Largest() as largest:
        answers = top_answers(x.detach(), weight.detach(), TopK(16, vocab), chunk_tokens=128)
        soft = SoftTargets(*answers)
        linear_cross_entropy(x, weight, labels, chunk_tokens=128, soft_targets=soft)[0].backward()
    assert largest.elements <= 128 * vocab
