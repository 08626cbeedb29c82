"""The cross-entropy of the next token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from data_pipeline.sampling.batches import Batch
from model.network import Decoder
from pretrain.objectives import Loss


@dataclass
class CrossEntropy:
    """The language-model loss. It has no options."""

    metrics: ClassVar[tuple[str, ...]] = ()

    def __call__(self, model: Decoder, batch: Batch) -> Loss:
        """Returns the loss of a batch as sums over its targets."""
        loss, by_sample = model(
            batch.tokens,
            batch.labels,
            batch.cu_seqlens,
            per_sample=True,
            max_seqlen=batch.max_seqlen,
        )
        return Loss(loss, by_sample)
