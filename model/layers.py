"""The parts of a decoder block. Names and layouts are those of Llama's Hugging Face checkpoints."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from model.attention.backends import Visible, attend
from model.config import ModelConfig
from model.rope import apply_rope


class Attention(nn.Module):
    """Grouped-query attention with rotary positions; no biases.

    The number of heads is read from the projections' output, so that a tensor-parallel shard of
    them is attention over its own heads.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        assert config.head_dim is not None
        self.head_dim = config.head_dim
        self.q_proj = nn.Linear(config.hidden_size, config.query_size, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, config.kv_size, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, config.kv_size, bias=False)
        self.o_proj = nn.Linear(config.query_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, visible: Visible) -> Tensor:
        """x (batch, seq, hidden) -> (batch, seq, hidden); cos, sin (seq, head_dim)."""
        batch, seq, _ = x.shape
        q = self.q_proj(x).view(batch, seq, -1, self.head_dim)
        k = self.k_proj(x).view(batch, seq, -1, self.head_dim)
        v = self.v_proj(x).view(batch, seq, -1, self.head_dim)
        out = attend(apply_rope(q, cos, sin), apply_rope(k, cos, sin), v, visible)
        return self.o_proj(out.flatten(2))


class MLP(nn.Module):
    """SwiGLU: down(silu(gate(x)) * up(x)) (arXiv 2002.05202)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """x (batch, seq, hidden) -> (batch, seq, hidden)."""
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)): pre-norm, two norms a block."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, visible: Visible) -> Tensor:
        """x (batch, seq, hidden) -> (batch, seq, hidden)."""
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, visible)
        return x + self.mlp(self.post_attention_layernorm(x))
