"""The output layer fused with the cross-entropy, in chunks that limit the memory for logits.

The gradient of a chunk's logits is known as soon as its loss is. The forward pass therefore
computes both and drops the chunk, and the backward pass only scales the result (the idea of Liger
Kernel, arXiv 2410.10989, and Cut Cross-Entropy, arXiv 2411.09009). Logits are computed in the dtype
of the weights. Losses and softmax are computed from the logits in float32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn

IGNORED = -100
"""Label of a token without a target."""
CHUNK_TOKENS = 2048
"""Number of tokens whose logits are held at once."""


class VocabularyShard(Protocol):
    """One rank's rows of a vocabulary that is split over ranks.

    Attributes:
        start: First token id of this shard.
    """

    start: int

    def reduce_max(self, x: Tensor) -> Tensor:
        """Returns the elementwise maximum over all shards."""

    def reduce_sum(self, x: Tensor) -> Tensor:
        """Returns the elementwise sum over all shards."""


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
        self, hidden: Tensor, labels: Tensor | None = None, penalty: Penalty | None = None
    ) -> Tensor | tuple[Tensor, ...]:
        """Returns the logits (batch, seq, vocab) of `hidden` (batch, seq, hidden), or a loss.

        Given labels (batch, seq), it returns the sum of their losses, followed by the losses
        (batch, seq) without gradient. Given a penalty too, the sum includes it, and the penalty's
        terms (batch, seq) are returned last.
        """
        if labels is None:
            return capped(super().forward(hidden), self.softcap)
        loss, *terms = linear_cross_entropy(
            hidden.flatten(0, 1),
            self.weight,
            labels.flatten(),
            compiled=self.compiled,
            penalty=penalty,
            softcap=self.softcap,
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

    Returns:
        The float32 sum, penalty included, and the losses (tokens,), without gradient and 0 where
        IGNORED. Given a penalty, also its terms (tokens,), without gradient and 0 where IGNORED.
    """
    # Inside `apply`, gradients are always disabled, and `needs_input_grad` ignores no_grad.
    grad = torch.is_grad_enabled()
    outputs = _LinearCrossEntropy.apply(
        hidden, weight, labels, shard, compiled, chunk_tokens, penalty, softcap, grad
    )
    return outputs if penalty is not None else outputs[:2]


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
        grad: bool,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        wants_hidden, wants_weight = (grad and needed for needed in ctx.needs_input_grad[:2])
        grad_hidden = torch.empty_like(hidden) if wants_hidden else None
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if wants_weight else None
        wants_grad = wants_hidden or wants_weight
        losses = torch.empty(len(hidden), dtype=torch.float32, device=hidden.device)
        terms = None if penalty is None else torch.empty_like(losses)
        for start in range(0, hidden.shape[0], chunk_tokens):
            rows = slice(start, start + chunk_tokens)
            if compiled and not shard:
                logits = hidden[rows] @ weight.t()
                losses[rows], term, grad_logits = compiled(
                    logits, labels[rows], wants_grad, penalty, softcap
                )
            else:
                losses[rows], term, grad_logits = _in_place(
                    hidden[rows], weight, labels[rows], shard, wants_grad, penalty, softcap
                )
            if terms is not None and term is not None:
                terms[rows] = term
            if grad_hidden is not None:
                torch.mm(grad_logits, weight, out=grad_hidden[rows])
            if grad_weight is not None:
                grad_weight += grad_logits.t() @ hidden[rows]
        ctx.grads = grad_hidden, grad_weight
        if terms is None:
            ctx.mark_non_differentiable(losses)
            return losses.sum(), losses, None
        ctx.mark_non_differentiable(losses, terms)
        return losses.sum() + terms.sum(), losses, terms

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        grad_hidden, grad_weight = ctx.grads
        del ctx.grads
        for grad in (grad_hidden, grad_weight):
            if grad is not None:
                grad.mul_(grad_loss)
        return grad_hidden, grad_weight, *(7 * [None])


def capped(logits: Tensor, softcap: float | None) -> Tensor:
    """Returns softcap * tanh(logits / softcap), or the logits if there is no bound."""
    return logits if softcap is None else softcap * torch.tanh(logits / softcap)


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
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Returns the same as `losses_and_gradient`, for a whole vocabulary or a shard of it.

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
    counted = labels != IGNORED
    local = labels - (shard.start if shard else 0)
    here = counted & (local >= 0) & (local < weight.shape[0])
    local = torch.where(here, local, 0)[:, None]

    largest = logits.amax(dim=-1, keepdim=True)
    if shard:
        largest = shard.reduce_max(largest)
    target = torch.where(here[:, None], logits.gather(1, local) - largest, 0.0)
    exponentials = logits.sub_(largest).exp_()
    total = exponentials.sum(dim=-1, keepdim=True)
    if shard:
        total, target = shard.reduce_sum(torch.cat((total, target), dim=-1)).split(1, dim=-1)
    loss = torch.where(counted[:, None], total.log() - target, 0.0)[:, 0]
    term, factor = _penalized(total.log() + largest, counted[:, None], penalty)
    if not wants_grad:
        return loss, term, logits
    grad = exponentials.mul_(counted[:, None] * factor / total)
    grad.scatter_add_(1, local, -here[:, None].to(grad.dtype))
    if slope is not None:
        grad.mul_(slope)
    return loss, term, grad.to(hidden.dtype)
