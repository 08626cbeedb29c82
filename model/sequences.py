"""How a decoder takes the sequences of a batch: whole, unless someone spreads them over processes.

The seam for context parallelism: `Decoder.sequences` may be replaced by anything with these two
methods.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from model.attention.backends import Visible, visible_keys


@dataclass
class Part:
    """tokens, labels: (batch, seq here); positions: (seq here,) of them in their sequences;
    visible: which keys they see."""

    tokens: Tensor
    labels: Tensor | None
    positions: Tensor
    visible: Visible


class Sequences(Protocol):
    """What a process works on of a batch, and how the parts become whole again."""

    def part(
        self,
        backend: str,
        window: int | None,
        tokens: Tensor,
        labels: Tensor | None,
        cu_seqlens: Tensor | None,
    ) -> Part:
        """The share of this process of tokens and labels (batch, seq)."""

    def whole(self, output: Tensor) -> Tensor:
        """The losses of all parts, () or (batch,), whose gradient is that of the part here; or the
        logits (batch, seq, vocab) of all positions from those here (batch, seq here, vocab)."""


class WholeSequences:
    """One process has all positions of its sequences."""

    def part(
        self,
        backend: str,
        window: int | None,
        tokens: Tensor,
        labels: Tensor | None,
        cu_seqlens: Tensor | None,
    ) -> Part:
        """All of the batch."""
        batch, seq = tokens.shape
        positions = torch.arange(seq, device=tokens.device)
        visible = visible_keys(backend, batch, seq, window, cu_seqlens, tokens.device)
        return Part(tokens, labels, positions, visible)

    def whole(self, output: Tensor) -> Tensor:
        """The output itself."""
        return output
