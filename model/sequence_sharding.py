"""The hook for context parallelism, which splits the sequences of a batch over processes.

`Decoder.sequence_sharding` may be replaced by any object with the methods of `SequenceSharding`.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from model.attention.mask import AttentionMask, attention_masks


@dataclass
class LocalBatch:
    """The positions of a batch that this process computes.

    Attributes:
        tokens: (batch, local seq).
        labels: (batch, local seq), or None.
        positions: (local seq,) position of each token in its sequence.
        masks: For each window, the mask of keys that the tokens see.
    """

    tokens: Tensor
    labels: Tensor | None
    positions: Tensor
    masks: dict[int | None, AttentionMask]


class SequenceSharding(Protocol):
    """Splits the sequences of a batch over processes and combines the results."""

    def local(
        self,
        backend: str,
        windows: Collection[int | None],
        tokens: Tensor,
        labels: Tensor | None,
        cu_seqlens: Tensor | None,
        max_seqlen: int | None,
        dtype: torch.dtype,
    ) -> LocalBatch:
        """Returns this process's part of tokens and labels (batch, seq).

        Args:
            backend: The attention backend.
            windows: The windows of all layers, None for full attention.
            tokens: Token ids of whole sequences.
            labels: Their labels, or None.
            cu_seqlens: Starts of documents, in the form that `Decoder.forward` takes.
            max_seqlen: Upper bound of the tokens in a document; None for the sequence length.
            dtype: Dtype of the queries.
        """

    def positions(self, windows: Collection[int | None], seq: int, device: torch.device) -> Tensor:
        """Returns the positions, (local seq,), of a sequence that this process computes.

        Args:
            windows: The windows of all layers, None for full attention.
            seq: Tokens of the whole sequence.
            device: Device of the result.
        """

    def combine(self, output: Tensor) -> Tensor:
        """Combines the outputs of all processes.

        Losses, () or (batch,), are summed, and each process keeps the gradient of its own part.
        Logits (batch, local seq, vocab) are gathered to (batch, seq, vocab).
        """


class WholeSequences:
    """The sharding of a single process, which holds all positions of its sequences."""

    def local(
        self,
        backend: str,
        windows: Collection[int | None],
        tokens: Tensor,
        labels: Tensor | None,
        cu_seqlens: Tensor | None,
        max_seqlen: int | None,
        dtype: torch.dtype,
    ) -> LocalBatch:
        """Returns the whole batch."""
        batch, seq = tokens.shape
        positions = self.positions(windows, seq, tokens.device)
        masks = attention_masks(
            backend, batch, seq, windows, cu_seqlens, tokens.device, dtype, max_seqlen
        )
        return LocalBatch(tokens, labels, positions, masks)

    def positions(self, windows: Collection[int | None], seq: int, device: torch.device) -> Tensor:
        """Returns all positions."""
        return torch.arange(seq, device=device)

    def combine(self, output: Tensor) -> Tensor:
        """Returns the output unchanged."""
        return output
