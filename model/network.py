"""The decoder: embedding, blocks, final norm and head."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from model.config import ModelConfig
from model.layers import Block
from model.logits import TopK
from model.loss import Head, Penalty
from model.norms import make_norm
from model.parametrization import parametrization_of
from model.rope import rope_table
from model.sequence_sharding import SequenceSharding, WholeSequences
from model.soft_targets import SoftTargets


class Decoder(nn.Module):
    """A decoder with the optional features of `ModelConfig`.

    It has parameters but no buffers, so that it can be built on the meta device, sharded by
    the caller, and initialized parameter by parameter (`model.init`).

    Attributes:
        config: The shape. It may be replaced between calls by a config with the same parameters,
            such as that of a training stage with its own RoPE base or scaling.
        attention: Name of a backend in `model.attention.backends`.
        sequence_sharding: How sequences are split over processes; set by context parallelism.
    """

    def __init__(self, config: ModelConfig, attention: str = "sdpa") -> None:
        super().__init__()
        self.config = config
        self.attention = attention
        self.sequence_sharding: SequenceSharding = WholeSequences()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.norm = make_norm(config, config.hidden_size)
        self.lm_head = Head(config.hidden_size, config.vocab_size, config.logit_softcap)
        self.tie()

    def tie(self) -> None:
        """Shares the embedding's weight with the head if the config ties them."""
        if self.config.tie_embeddings:
            self.lm_head.weight = self.embed_tokens.weight

    def positions(self, seq: int, device: torch.device) -> Tensor:
        """Returns the positions, (local seq,), of a sequence that this process computes."""
        windows = {layer.window for layer in self.config.layers}
        return self.sequence_sharding.positions(windows, seq, device)

    def forward(
        self,
        tokens: Tensor,
        labels: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        per_sample: bool = False,
        id_mask: Tensor | None = None,
        penalty: Penalty | None = None,
        max_seqlen: int | None = None,
        soft_targets: SoftTargets | None = None,
        top_k: TopK | None = None,
    ) -> Tensor | tuple[Tensor, ...]:
        """Returns the logits of tokens or, if labels are given, the sum of their cross-entropies.

        Args:
            tokens: (batch, seq).
            labels: (batch, seq), or None for logits (batch, seq, vocab).
            cu_seqlens: (documents + 1,) int32 starts of documents over the flattened tokens, padded
                with batch * seq; None if every sequence is one document.
            per_sample: Whether to also return the sum of each sample's losses, (batch,), without
                gradient.
            id_mask: (vocab,) bool that marks token ids. If given, the sum of the losses of labels
                with these ids is also returned, without gradient.
            penalty: A term that is added to the loss of each label (`model.loss.Penalty`). With
                per_sample, the float32 sum of the terms follows, without gradient.
            max_seqlen: Upper bound of the tokens in a document, which makes some attention kernels
                faster; None for the length of a sequence.
            soft_targets: A teacher's answers for the positions of this process, (batch, local
                seq), which the loss includes. With per_sample, the float32 sums of the divergences
                and of the agreements follow, without gradient (`model.loss`).
            top_k: If given, the answers of this network are returned for the positions of this
                process (`model.logits.top_answers`), instead of logits.

        Returns:
            The logits, or the loss as a float32 scalar followed by the requested tensors.
        """
        layers = self.config.layers
        windows = {layer.window for layer in layers}
        dtype = self.embed_tokens.weight.dtype
        batch = self.sequence_sharding.local(
            self.attention, windows, tokens, labels, cu_seqlens, max_seqlen, dtype
        )
        x = self.embed_tokens(batch.tokens)
        if self.config.scale_embeddings:  # by a factor in the dtype of the weights
            x = x * torch.tensor(self.config.hidden_size**0.5, dtype=x.dtype)
        head_dim = self.config.head_dim
        assert head_dim is not None
        ropes = {
            rope: rope_table(batch.positions, head_dim, rope, x.dtype) if rope else (None, None)
            for rope in {layer.rope for layer in layers}
        }
        for block, layer in zip(self.layers, layers, strict=True):
            x = block(x, *ropes[layer.rope], batch.masks[layer.window])
        x = self.norm(x)
        multiplier = parametrization_of(self.config).output_multiplier
        if multiplier != 1:
            x = x * multiplier
        out = self.lm_head(x, batch.labels, penalty, soft_targets, top_k)
        if top_k is not None:
            return out
        if batch.labels is None:
            return self.sequence_sharding.combine(out)
        loss, losses, *terms = out
        loss = self.sequence_sharding.combine(loss)
        if per_sample:
            sums = [losses.sum(1), *(term.sum() for term in terms)]
            return loss, *map(self.sequence_sharding.combine, sums)
        if id_mask is not None:
            chosen = losses * id_mask[batch.labels.clamp(min=0)]
            return loss, self.sequence_sharding.combine(chosen.sum())
        return loss


def build_meta(config: ModelConfig, attention: str = "sdpa") -> Decoder:
    """Returns the decoder on the meta device, with shapes but no storage."""
    with torch.device("meta"):
        return Decoder(config, attention)
