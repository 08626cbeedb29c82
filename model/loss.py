"""The output layer fused with the cross-entropy, in chunks that limit the memory for logits.

The gradient of a chunk's logits is known as soon as its loss is. The forward pass therefore
computes both and drops the chunk, and the backward pass only scales the result (the idea of Liger
Kernel, arXiv 2410.10989, and Cut Cross-Entropy, arXiv 2411.09009). Logits are computed in the dtype
of the weights. Losses and softmax are computed from the logits in float32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from model.logits import (
    CHUNK_TOKENS,
    TopK,
    VocabularyShard,
    capped,
    local_ids,
    remove_columns,
    top_answers,
)
from model.soft_targets import SMALLEST, SoftTargets

IGNORED = -100
"""Label of a token without a target."""
Penalty = Callable[[Tensor], tuple[Tensor, Tensor]]
"""A term that is added to the loss of each target. Maps the logsumexp of the target's logits to the
term and its derivative, all in float32 and of the same shape."""
Losses = Callable[
    [Tensor, Tensor, bool, Penalty | None, float | None], tuple[Tensor, Tensor | None, Tensor]
]
"""`losses_and_gradient`, or its compiled version."""


class Head(nn.Linear):
    """The output layer, which returns logits or, given labels, their cross-entropy.

    Attributes:
        softcap: Bound c of the logits, which become c * tanh(logits / c); None for none.
        compiled: The compiled form of `losses_and_gradient`, for an unsharded vocabulary; None
            to use the form that is not compiled.
    """

    compiled: Losses | None = None

    def __init__(self, hidden_size: int, vocab_size: int, softcap: float | None = None) -> None:
        super().__init__(hidden_size, vocab_size, bias=False)
        self.softcap = softcap

    def forward(  # type: ignore[override]
        self,
        hidden: Tensor,
        labels: Tensor | None = None,
        penalty: Penalty | None = None,
        soft_targets: SoftTargets | None = None,
        top_k: TopK | None = None,
    ) -> Tensor | tuple[Tensor, ...]:
        """Returns the logits (batch, seq, vocab) of `hidden` (batch, seq, hidden), or a loss.

        Given labels (batch, seq), it returns the sum of their losses, followed by the
        cross-entropies (batch, seq) without gradient. A penalty and soft targets are included in
        the sum, and their terms (batch, seq) follow: that of the penalty, then the divergence and
        the agreement (see `linear_cross_entropy`). Given `top_k`, it returns `top_answers`.
        """
        if top_k is not None:
            return self.answers(hidden, self.weight, top_k)
        if labels is None:
            return capped(super().forward(hidden), self.softcap)
        return self.losses(hidden, self.weight, labels, penalty, soft_targets)

    def answers(
        self,
        hidden: Tensor,
        weight: Tensor,
        top_k: TopK,
        shard: VocabularyShard | None = None,
    ) -> tuple[Tensor, ...]:
        """Returns `top_answers` of hidden (batch, seq, hidden), shaped (batch, seq, ...)."""
        found = top_answers(hidden.flatten(0, 1), weight, top_k, shard, self.softcap)
        return tuple(part.unflatten(0, hidden.shape[:2]) for part in found)

    def losses(
        self,
        hidden: Tensor,
        weight: Tensor,
        labels: Tensor,
        penalty: Penalty | None,
        soft_targets: SoftTargets | None,
        shard: VocabularyShard | None = None,
    ) -> tuple[Tensor, ...]:
        """Returns `linear_cross_entropy` of (batch, seq, hidden), with terms (batch, seq)."""
        loss, *terms = linear_cross_entropy(
            hidden.flatten(0, 1),
            weight,
            labels.flatten(),
            shard,
            self.compiled,
            penalty=penalty,
            softcap=self.softcap,
            soft_targets=None if soft_targets is None else soft_targets.flat(),
        )
        return loss, *(term.view(labels.shape) for term in terms)


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    shard: VocabularyShard | None = None,
    compiled: Losses | None = None,
    chunk_tokens: int = CHUNK_TOKENS,
    penalty: Penalty | None = None,
    softcap: float | None = None,
    soft_targets: SoftTargets | None = None,
) -> tuple[Tensor, ...]:
    """Returns the sum of -log softmax(hidden @ weight.T)[labels] over labels that count.

    Args:
        hidden: (tokens, hidden).
        weight: (vocab, hidden), or this rank's rows of it.
        labels: (tokens,) ids of the whole vocabulary, IGNORED where a token does not count.
        shard: The rows that `weight` holds, if the vocabulary is split over ranks. Every rank then
            returns the whole loss, and a partial gradient of `hidden` to be summed over ranks.
        compiled: The compiled form of `losses_and_gradient`, for an unsharded vocabulary.
        chunk_tokens: Number of tokens whose logits are held at once.
        penalty: A term that is added to the loss of each label that counts.
        softcap: Bound of the logits; None for none (see `Head`).
        soft_targets: A teacher's answers, whose divergence is added for each label that counts, and
            which weigh the cross-entropy.

    Returns:
        The float32 sum of everything, and the cross-entropies (tokens,), not weighed. Given a
        penalty, then its terms (tokens,). Given soft targets, then the divergences (tokens,), not
        weighed, and 1 where student and teacher agree on the most probable token (tokens,). All but
        the sum are without gradient, and 0 where IGNORED.
    """
    # Inside `apply`, gradients are always disabled, and `needs_input_grad` ignores no_grad.
    grad = torch.is_grad_enabled()
    return _LinearCrossEntropy.apply(
        hidden, weight, labels, shard, compiled, chunk_tokens, penalty, softcap, soft_targets, grad
    )


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        labels: Tensor,
        shard: VocabularyShard | None,
        compiled: Losses | None,
        chunk_tokens: int,
        penalty: Penalty | None,
        softcap: float | None,
        soft_targets: SoftTargets | None,
        grad: bool,
    ) -> tuple[Tensor, ...]:
        wants_hidden, wants_weight = (grad and needed for needed in ctx.needs_input_grad[:2])
        grad_hidden = torch.empty_like(hidden) if wants_hidden else None
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if wants_weight else None
        wants_grad = wants_hidden or wants_weight
        number = 1 + (penalty is not None) + 2 * (soft_targets is not None)
        terms = torch.empty(number, len(hidden), dtype=torch.float32, device=hidden.device)
        for start in range(0, hidden.shape[0], chunk_tokens):
            rows = slice(start, start + chunk_tokens)
            if compiled and not shard and soft_targets is None:
                logits = hidden[rows] @ weight.t()
                loss, term, grad_logits = compiled(
                    logits, labels[rows], wants_grad, penalty, softcap
                )
                found = [loss] if term is None else [loss, term]
            else:
                soft = None if soft_targets is None else soft_targets.rows(rows)
                found, grad_logits = _in_place(
                    hidden[rows], weight, labels[rows], shard, wants_grad, penalty, softcap, soft
                )
            for row, term in zip(terms, found, strict=True):
                row[rows] = term
            if grad_hidden is not None:
                torch.mm(grad_logits, weight, out=grad_hidden[rows])
            if grad_weight is not None:
                grad_weight += grad_logits.t() @ hidden[rows]
        ctx.grads = grad_hidden, grad_weight
        sums = [term.sum() for term in terms]
        if soft_targets is not None:
            sums.pop()  # agreement is not a loss
            sums[0], sums[-1] = (
                sums[0] * soft_targets.label_weight,
                sums[-1] * soft_targets.weight,
            )
        returned = tuple(terms.unbind())
        ctx.mark_non_differentiable(*returned)
        return torch.stack(sums).sum() if len(sums) > 1 else sums[0], *returned

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        grad_hidden, grad_weight = ctx.grads
        del ctx.grads
        for grad in (grad_hidden, grad_weight):
            if grad is not None:
                grad.mul_(grad_loss)
        return grad_hidden, grad_weight, *(8 * [None])


def losses_and_gradient(
    logits: Tensor,
    labels: Tensor,
    wants_grad: bool,
    penalty: Penalty | None = None,
    softcap: float | None = None,
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Returns losses and penalty terms (tokens,), and the gradient of logits (tokens, vocab).

    This form is meant to be compiled: the kernel reads the logits three times and writes the
    gradient once. The gradient has the dtype of the logits.
    """
    whole = capped(logits.float(), softcap)
    counted = (labels != IGNORED)[:, None]
    local = torch.where(counted, labels[:, None], 0)
    total = whole.logsumexp(-1, keepdim=True)
    loss = torch.where(counted, total - whole.gather(1, local), 0.0)[:, 0]
    term, factor = _penalized(total, counted, penalty)
    if not wants_grad:
        return loss, term, logits
    target = torch.arange(logits.shape[1], device=logits.device) == local
    grad = torch.where(counted, (whole - total).exp() * factor - target.float(), 0.0)
    if softcap is not None:
        grad = grad * (1 - (whole / softcap).square())
    return loss, term, grad.to(logits.dtype)


def _penalized(
    logsumexp: Tensor, counted: Tensor, penalty: Penalty | None
) -> tuple[Tensor | None, Tensor | float]:
    """Returns the penalty's terms (tokens,) and the factor (tokens, 1) that scales the softmax.

    The scaled softmax is part of the gradient of the logits. logsumexp and counted are (tokens, 1).
    """
    if penalty is None:
        return None, 1.0
    term, derivative = penalty(logsumexp)
    return torch.where(counted, term, 0.0)[:, 0], 1.0 + derivative


def _in_place(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    shard: VocabularyShard | None,
    wants_grad: bool,
    penalty: Penalty | None,
    softcap: float | None,
    soft_targets: SoftTargets | None,
) -> tuple[list[Tensor], Tensor]:
    """Returns the terms and the gradient of `losses_and_gradient`, also for a shard.

    This form is not compiled, and needs one float32 buffer of the size of the logits, or two if the
    logits have a bound.
    """
    logits = (hidden @ weight.t()).float()
    slope: Tensor | None = None
    if softcap is not None:
        logits.div_(softcap).tanh_()
        if wants_grad:
            slope = logits.square().neg_().add_(1)
        logits.mul_(softcap)
    counted = (labels != IGNORED)[:, None]
    local, here = local_ids(labels[:, None], weight.shape[0], shard)
    here = counted & here

    largest = logits.amax(dim=-1, keepdim=True)
    if shard:
        largest = shard.reduce_max(largest)
    exponentials = logits.sub_(largest)
    # Of the label, and of the teacher's tokens: the logits less the largest of all.
    scores = torch.where(here, exponentials.gather(1, local), 0.0)
    if soft_targets is not None:
        soft_local, soft_here = local_ids(soft_targets.ids, weight.shape[0], shard)
        chosen = torch.where(soft_here, exponentials.gather(1, soft_local), 0.0)
        scores = torch.cat((scores, chosen), 1)
    exponentials.exp_()
    if soft_targets is not None:
        remove_columns(exponentials, soft_local, soft_here)
    total = exponentials.sum(dim=-1, keepdim=True)
    if shard:
        reduced = shard.reduce_sum(torch.cat((total, scores), dim=-1))
        total, scores = reduced[:, :1], reduced[:, 1:]
    target, rest = scores[:, :1], total
    if soft_targets is not None:
        total = rest + scores[:, 1:].exp().sum(1, keepdim=True)
    found = [torch.where(counted, total.log() - target, 0.0)[:, 0]]
    term, factor = _penalized(total.log() + largest, counted, penalty)
    if term is not None:
        found.append(term)
    label_weight = 1.0
    if soft_targets is not None:
        label_weight = soft_targets.label_weight
        factor = label_weight + (factor - 1.0)  # the penalty is not weighed
        divergence, of_chosen, of_rest = soft_targets.compare(scores[:, 1:], rest)
        agrees = (scores[:, 1] >= 0) & counted[:, 0]
        found += [torch.where(counted[:, 0], divergence, 0.0), agrees.float()]
    if not wants_grad:
        return found, logits
    if soft_targets is None:
        grad = exponentials.mul_(counted * factor / total)
    else:
        of_chosen = scores[:, 1:].exp() * (factor / total) + soft_targets.weight * of_chosen
        of_rest = soft_targets.weight * of_rest / rest.clamp(min=SMALLEST)
        grad = exponentials.mul_(counted * (factor / total + of_rest))
        grad.scatter_add_(1, soft_local, torch.where(counted & soft_here, of_chosen, 0.0))
    grad.scatter_add_(1, local, -label_weight * here.to(grad.dtype))
    if slope is not None:
        grad.mul_(slope)
    return found, grad.to(hidden.dtype)
