"""The parts of a decoder block, with the parameter names of Hugging Face checkpoints."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.attention.backends import attend
from model.attention.mask import AttentionMask
from model.config import ModelConfig
from model.norms import NORM_PLACES, make_norm
from model.parametrization import parametrization_of
from model.rope import apply_rope

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
}
"""Activations of the MLP's gate, by `model.activation`."""


class Attention(nn.Module):
    """Grouped-query attention with rotary positions or, in chosen layers, without positions.

    With `qkv_bias`, the projections of queries, keys and values have biases. With `qk_norm`,
    queries and keys are normalized before they are rotated, each head by itself (arXiv 2302.05442)
    or all heads of a token together (arXiv 2405.09818). With `head_gates`, the output of each head
    is multiplied by a gate between 0 and 1, which starts around 1/2 (arXiv 2505.06708). The number
    of heads follows from the width of the projections' outputs, so that with tensor-parallel
    projections, each rank computes attention over its own heads.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        assert config.head_dim is not None
        self.head_dim = config.head_dim
        bias = config.qkv_bias
        self.q_proj = nn.Linear(config.hidden_size, config.query_size, bias=bias)
        self.k_proj = nn.Linear(config.hidden_size, config.kv_size, bias=bias)
        self.v_proj = nn.Linear(config.hidden_size, config.kv_size, bias=bias)
        self.o_proj = nn.Linear(config.query_size, config.hidden_size, bias=False)
        self.g_proj: nn.Linear | None = None
        if config.head_gates:
            self.g_proj = nn.Linear(config.hidden_size, config.num_heads, bias=False)
        self.q_norm: nn.RMSNorm | None = None
        self.k_norm: nn.RMSNorm | None = None
        self.norms_heads = config.qk_norm_width == "head"
        if config.qk_norm:
            self.q_norm = make_norm(config, config.query_norm_size)
            self.k_norm = make_norm(config, config.key_norm_size)
        # All backends divide scores by sqrt(head_dim).
        scalar = config.query_pre_attn_scalar or config.head_dim
        self.query_factor = math.sqrt(config.head_dim / scalar)
        self.query_factor *= parametrization_of(config).query_multiplier

    def forward(
        self, x: Tensor, cos: Tensor | None, sin: Tensor | None, mask: AttentionMask
    ) -> Tensor:
        """Maps x (batch, seq, hidden) to the same shape.

        cos and sin are (seq, head_dim), or None for a layer without positions.
        """
        q = self._heads(self.q_proj(x), self.q_norm)
        k = self._heads(self.k_proj(x), self.k_norm)
        v = self._heads(self.v_proj(x), None)
        if cos is not None and sin is not None:
            q, k = apply_rope(q, cos, sin), apply_rope(k, cos, sin)
        if self.query_factor != 1:
            q = q * self.query_factor
        heads = attend(q, k, v, mask)
        if self.g_proj is not None:
            heads = heads * self.g_proj(x).sigmoid().unsqueeze(-1)
        return self.o_proj(heads.flatten(2))

    def _heads(self, x: Tensor, norm: nn.RMSNorm | None) -> Tensor:
        """Returns x (batch, seq, width) normalized, as (batch, seq, heads, head_dim)."""
        if norm is not None and not self.norms_heads:
            x = norm(x)
        x = x.view(*x.shape[:2], -1, self.head_dim)
        return norm(x) if norm is not None and self.norms_heads else x


class MLP(nn.Module):
    """A gated MLP: down(activation(gate(x)) * up(x)) (SwiGLU and GeGLU, arXiv 2002.05202)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)
        self.activation = ACTIVATIONS[config.activation]

    def forward(self, x: Tensor) -> Tensor:
        """Maps x (batch, seq, hidden) to the same shape."""
        return self.down_proj(self.activation(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    """Attention and an MLP, each of which adds to the residual stream.

    `norm_order` chooses x + attention(norm(x)), x + norm(attention(x)) or
    x + norm(attention(norm(x))), and the same for the MLP. With `parametrization=completep`, the
    output of each is multiplied by a constant before it is added.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.places = NORM_PLACES[config.norm_order]
        self.multiplier = parametrization_of(config).residual_multiplier
        self._add_norms(config, self.places[:2])
        self.self_attn = Attention(config)
        self._add_norms(config, self.places[2:])
        self.mlp = MLP(config)

    def _add_norms(self, config: ModelConfig, names: tuple[str | None, ...]) -> None:
        for name in names:
            if name is not None:
                self.add_module(name, make_norm(config, config.hidden_size))

    def _norm(self, name: str | None, x: Tensor) -> Tensor:
        """Returns x normalized by the norm of this name, or unchanged if there is none."""
        return x if name is None else getattr(self, name)(x)

    def _add(self, x: Tensor, branch: Tensor) -> Tensor:
        """Returns x plus the output of a branch, in one operation."""
        return x + branch if self.multiplier == 1 else torch.add(x, branch, alpha=self.multiplier)

    def forward(
        self, x: Tensor, cos: Tensor | None, sin: Tensor | None, mask: AttentionMask
    ) -> Tensor:
        """Maps x (batch, seq, hidden) to the same shape, with `Attention`'s arguments."""
        attended = self.self_attn(self._norm(self.places.before_attention, x), cos, sin, mask)
        x = self._add(x, self._norm(self.places.after_attention, attended))
        mapped = self.mlp(self._norm(self.places.before_mlp, x))
        return self._add(x, self._norm(self.places.after_mlp, mapped))
