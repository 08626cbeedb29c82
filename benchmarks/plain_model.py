"""A plain decoder in the style of nanoGPT: one file, torch's attention, materialized logits."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.config import ModelConfig
from model.rope import rope_table
from model.rope_scaling import Rope


class PlainBlock(nn.Module):
    """Attention and MLP with fused projections."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        assert config.head_dim is not None
        self.head_dim = config.head_dim
        self.sizes = (config.query_size, config.kv_size, config.kv_size)
        self.norm_1 = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.norm_2 = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.qkv = nn.Linear(config.hidden_size, sum(self.sizes), bias=False)
        self.o = nn.Linear(config.query_size, config.hidden_size, bias=False)
        self.gate_up = nn.Linear(config.hidden_size, 2 * config.intermediate_size, bias=False)
        self.down = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None) -> Tensor:
        """Returns (batch, seq, hidden).

        Args:
            x: (batch, seq, hidden).
            cos: (seq, head_dim).
            sin: (seq, head_dim).
            mask: (seq, seq), or None for plain causal attention.
        """
        q, k, v = (
            part.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for part in self.qkv(self.norm_1(x)).split(self.sizes, -1)
        )
        q, k = (
            part * cos + torch.cat((-part.chunk(2, -1)[1], part.chunk(2, -1)[0]), -1) * sin
            for part in (q, k)
        )
        out = F.scaled_dot_product_attention(q, k, v, mask, is_causal=mask is None, enable_gqa=True)
        x = x + self.o(out.transpose(1, 2).flatten(2))
        gate, up = self.gate_up(self.norm_2(x)).chunk(2, -1)
        return x + self.down(F.silu(gate) * up)


class Plain(nn.Module):
    """Maps tokens (batch, seq) to logits (batch, seq, vocab); `dtype` is that of activations."""

    def __init__(self, config: ModelConfig, seq_len: int, dtype: torch.dtype) -> None:
        super().__init__()
        assert config.head_dim is not None
        self.embed = nn.Embedding(config.vocab_size, config.hidden_size)
        self.blocks = nn.ModuleList(PlainBlock(config) for _ in range(config.num_layers))
        self.norm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        at = torch.arange(seq_len)
        cos, sin = rope_table(at, config.head_dim, Rope(config.rope_theta), dtype)
        self.register_buffer("cos", cos)
        self.register_buffer("sin", sin)
        distance = at[:, None] - at[None]
        window = config.sliding_window
        bites = window is not None and window < seq_len
        self.register_buffer(
            "mask", (distance >= 0) & (distance < (window or 0)) if bites else None
        )

    def forward(self, tokens: Tensor) -> Tensor:
        """Returns the logits of all tokens."""
        x = self.embed(tokens)
        for block in self.blocks:
            x = block(x, self.cos, self.sin, self.mask)
        return self.head(self.norm(x))


def plain_weights(values: dict[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """Renames Headwater's weights to the names that `Plain` uses."""
    renamed = {
        "embed.weight": values["embed_tokens.weight"],
        "norm.weight": values["norm.weight"],
        "head.weight": values["lm_head.weight"],
    }
    for layer in range(config.num_layers):
        to, by = f"blocks.{layer}", f"layers.{layer}"
        q, k, v, o = (values[f"{by}.self_attn.{name}_proj.weight"] for name in "qkvo")
        gate, up, down = (values[f"{by}.mlp.{name}_proj.weight"] for name in ("gate", "up", "down"))
        renamed[f"{to}.norm_1.weight"] = values[f"{by}.input_layernorm.weight"]
        renamed[f"{to}.norm_2.weight"] = values[f"{by}.post_attention_layernorm.weight"]
        renamed[f"{to}.qkv.weight"], renamed[f"{to}.o.weight"] = torch.cat((q, k, v)), o
        renamed[f"{to}.gate_up.weight"], renamed[f"{to}.down.weight"] = torch.cat((gate, up)), down
    return renamed
