"""The norms of the network: their kinds, and their places in a block."""

from __future__ import annotations

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from model.config import ModelConfig


class BlockNorms(NamedTuple):
    """Names of a block's norms by place; None where the block has none.

    The names are those of Hugging Face checkpoints, in which `post_attention_layernorm` is the norm
    before the MLP of one order and the norm after attention of the others.
    """

    before_attention: str | None
    after_attention: str | None
    before_mlp: str | None
    after_mlp: str | None

    @property
    def number(self) -> int:
        """Number of norms in a block."""
        return sum(name is not None for name in self)


NORM_PLACES = {
    "before": BlockNorms("input_layernorm", None, "post_attention_layernorm", None),
    "after": BlockNorms(None, "post_attention_layernorm", None, "post_feedforward_layernorm"),
    "both": BlockNorms(
        "input_layernorm",
        "post_attention_layernorm",
        "pre_feedforward_layernorm",
        "post_feedforward_layernorm",
    ),
}
"""The norms of a block, by `model.norm_order`."""


class ZeroCenteredRMSNorm(nn.RMSNorm):
    """An RMSNorm that multiplies by 1 + weight, so that its weights start at 0.

    The sum and the product are computed in float32, because 1 + weight would lose most digits of
    the weight in bfloat16.
    """

    def reset_parameters(self) -> None:
        """Sets the weights to 0."""
        nn.init.zeros_(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Maps x (..., width) to the same shape."""
        weight = 1.0 + self.weight.float()
        return F.rms_norm(x.float(), self.normalized_shape, weight, self.eps).to(x.dtype)


def make_norm(config: ModelConfig, width: int) -> nn.RMSNorm:
    """Returns a norm over `width` values, of the kind that the config chooses."""
    kind = ZeroCenteredRMSNorm if config.zero_centered_norms else nn.RMSNorm
    return kind(width, eps=config.rms_norm_eps)


def describe_norms(config: ModelConfig) -> str:
    """Returns the norms in words, such as `before attention and MLP, queries and keys per head`."""
    order = "before and after" if config.norm_order == "both" else config.norm_order
    parts = [f"{order} attention and MLP"]
    if config.qk_norm:
        over = "per head" if config.qk_norm_width == "head" else "over all heads"
        parts.append(f"queries and keys {over}")
    if config.zero_centered_norms:
        parts.append("weights of 1 + w")
    return ", ".join(parts)


def describe_scales(config: ModelConfig) -> str:
    """Returns the activation of the MLP and the fixed scales of the network in words."""
    parts = [f"{config.activation} in the MLP"]
    if config.head_gates:
        parts.append("a gate per attention head")
    if config.scale_embeddings:
        parts.append(f"embeddings times {config.hidden_size**0.5:.4g}")
    if config.query_pre_attn_scalar is not None:
        parts.append(f"scores divided by sqrt({config.query_pre_attn_scalar:g})")
    if config.logit_softcap is not None:
        parts.append(f"logits bounded by {config.logit_softcap:g}")
    return ", ".join(parts)
