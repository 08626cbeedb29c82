"""The decoder: embedding, blocks, final norm, head."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from model.config import ModelConfig
from model.layers import Block
from model.loss import Head, Penalty
from model.rope import rope_table
from model.sequences import Sequences, WholeSequences


class Decoder(nn.Module):
    """A Danube/Mistral/Llama decoder. It holds parameters only, no buffers, so that it can be
    built on the meta device, split by someone else and filled by name (`model.init`).

    config: may be replaced between calls by one that leaves the parameters as they are, as for a
        stage of the training with its own RoPE base.
    attention: a backend of `model.attention.backends`.
    sequences: replaced where they are spread over processes.
    """

    def __init__(self, config: ModelConfig, attention: str = "sdpa") -> None:
        super().__init__()
        self.config = config
        self.attention = attention
        self.sequences: Sequences = WholeSequences()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.norm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.lm_head = Head(config.hidden_size, config.vocab_size)
        self.tie()

    def tie(self) -> None:
        """Makes the head share the embedding's weight where the config says so."""
        if self.config.tie_embeddings:
            self.lm_head.weight = self.embed_tokens.weight

    def forward(
        self,
        tokens: Tensor,
        labels: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        per_sample: bool = False,
        of_ids: Tensor | None = None,
        penalty: Penalty | None = None,
    ) -> Tensor | tuple[Tensor, ...]:
        """tokens (batch, seq) -> logits (batch, seq, vocab), or with labels (batch, seq) the
        float32 sum of their cross-entropy; per_sample: and the sum of each sample (batch,); of_ids
        (vocab,): and the sum over the labels whose ids it marks. Neither has a gradient.

        penalty: a term that is added to the loss of each label (`model.loss.Penalty`). With
            per_sample, the float32 sum of the terms follows, without gradient.
        cu_seqlens: (documents + 1,) int32 starts of documents over the flattened tokens, padded
            with batch * seq; None where every sequence is one document.
        """
        config = self.config
        assert config.head_dim is not None
        part = self.sequences.part(
            self.attention, config.sliding_window, tokens, labels, cu_seqlens
        )
        x = self.embed_tokens(part.tokens)
        cos, sin = rope_table(part.positions, config.head_dim, config.rope_theta, x.dtype)
        for layer in self.layers:
            x = layer(x, cos, sin, part.visible)
        out = self.lm_head(self.norm(x), part.labels, penalty)
        if part.labels is None:
            return self.sequences.whole(out)
        loss, losses, *terms = out
        loss = self.sequences.whole(loss)
        if per_sample:
            sums = [losses.sum(1), *(term.sum() for term in terms)]
            return loss, *map(self.sequences.whole, sums)
        if of_ids is not None:
            chosen = losses * of_ids[part.labels.clamp(min=0)]
            return loss, self.sequences.whole(chosen.sum())
        return loss


def build_meta(config: ModelConfig, attention: str = "sdpa") -> Decoder:
    """The decoder without storage: shapes only."""
    with torch.device("meta"):
        return Decoder(config, attention)
