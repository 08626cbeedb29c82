"""A loss against a teacher's most probable tokens, in which all other tokens are one outcome.

A teacher's answer to a position is its k most probable tokens i with probabilities p_i, and the
probability p_0 of all other tokens together, the ghost token (arXiv 2503.16870). The student's
distribution q over the vocabulary is reduced in the same way: q_i of the same tokens, and q_0 of
all others. A temperature T flattens both distributions over these k + 1 outcomes,

    P_i = p_i^(1/T) / sum_j p_j^(1/T)        Q_i = q_i^(1/T) / sum_j q_j^(1/T)

and the loss is T^2 * KL(P || Q). If k is the whole vocabulary, p_0 = q_0 = 0, and this is the loss
of Hinton et al. (arXiv 1503.02531) between softmax(logits / T) of both. The divergence is 0 only if
the student gives these tokens the probabilities of the teacher. Without the ghost token, it would
be 0 as soon as their ratios are right, whatever probability the student leaves to other tokens.

With a student's logits z, its normalizer Z, and R = sum of exp(z_j) over the other tokens, the
derivative of the loss in z_i is T * (Q_i - P_i), and in z_j of another token j it is
T * (Q_0 - P_0) * exp(z_j) / R. So no more than k + 2 numbers per token are reduced over the shards
of a vocabulary, and the gradient is as large as that of the cross-entropy at every temperature.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

SMALLEST = torch.finfo(torch.float32).tiny
"""Least value of a sum of exponentials, so that the logarithm of one that underflows is finite."""


@dataclass(frozen=True)
class SoftTargets:
    """A teacher's answers, and what the student's loss makes of them.

    The loss of a target is `weight * T^2 * KL + label_weight * cross-entropy`.

    Attributes:
        ids: (..., k) int64, different ids in each position, the most probable first.
        log_probabilities: (..., k) float32.
        log_rest: (...,) float32, logarithm of the probability of all other tokens together.
        weight: Factor of the divergence.
        label_weight: Factor of the cross-entropy of the labels.
        temperature: The temperature T.
    """

    ids: Tensor
    log_probabilities: Tensor
    log_rest: Tensor
    weight: float = 1.0
    label_weight: float = 1.0
    temperature: float = 1.0

    def flat(self) -> SoftTargets:
        """Returns the answers of positions (tokens,) instead of (batch, seq)."""
        return self._mapped(lambda x: x.flatten(0, 1))

    def rows(self, rows: slice) -> SoftTargets:
        """Returns the answers of some positions."""
        return self._mapped(lambda x: x[rows])

    def _mapped(self, change: Callable[[Tensor], Tensor]) -> SoftTargets:
        return replace(
            self,
            ids=change(self.ids),
            log_probabilities=change(self.log_probabilities),
            log_rest=change(self.log_rest),
        )

    def compare(self, scores: Tensor, rest: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Returns the divergence T^2 * KL(P || Q), and T * (Q_i - P_i), of each position.

        The derivatives are those of the k tokens, (tokens, k), and of the others, (tokens, 1).

        Args:
            scores: (tokens, k), the student's logits of the k tokens less any number per position.
            rest: (tokens, 1), the sum of exp(logits less that number) over all other tokens.
        """
        temperature = self.temperature
        log_rest = rest.clamp(min=SMALLEST).log()
        log_q = (torch.cat((scores, log_rest), 1) / temperature).log_softmax(1)
        answers = torch.cat((self.log_probabilities, self.log_rest[:, None]), 1)
        log_p = (answers / temperature).log_softmax(1)
        p = log_p.exp()
        # 0 * log(0) is 0, also for a ghost token without probability.
        divergence = torch.where(p > 0, p * (log_p - log_q), 0.0).sum(1)
        difference = temperature * (log_q.exp() - p)
        return temperature**2 * divergence, difference[:, :-1], difference[:, -1:]
