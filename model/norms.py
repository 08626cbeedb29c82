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
