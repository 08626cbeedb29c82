"""Cross-entropy with z-loss, which keeps the logits' normalizer Z = sum(exp(logits)) near 1.

The loss of each target is `cross_entropy + coefficient * log(Z)^2`, as in ST-MoE (arXiv 2202.08906)
and PaLM (arXiv 2204.02311, section 5), which uses a coefficient of 1e-4.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from conf.errors import InputError
from data_pipeline.sampling.batches import Batch
from model.network import Decoder
from pretrain.objectives import Loss


@dataclass
class ZLoss:
    """Cross-entropy plus coefficient * log(Z)^2; the added term is recorded as `z_loss`."""

    coefficient: float = 1e-4
    metrics: ClassVar[tuple[str, ...]] = ("z_loss",)

    def __post_init__(self) -> None:
        if self.coefficient < 0:
            raise InputError(f"objective.coefficient={self.coefficient}: expected 0 or more.")

    def __call__(self, model: Decoder, batch: Batch) -> Loss:
        """Returns the loss of a batch as sums over its targets."""
        loss, by_sample, z_loss = model(
            batch.tokens,
            batch.labels,
            batch.cu_seqlens,
            per_sample=True,
            penalty=self.penalty,
            max_seqlen=batch.max_seqlen,
        )
        return Loss(loss, by_sample, (z_loss,))

    def penalty(self, log_z: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the added term of each target, and its derivative with respect to log(Z)."""
        return self.coefficient * log_z.square(), 2 * self.coefficient * log_z
