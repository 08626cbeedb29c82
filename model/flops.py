"""Counts parameters and FLOPs per token by formula, without building the network.

A multiply-add counts as 2 FLOPs in the forward pass and 4 in the backward pass (PaLM, arXiv
2204.02311, appendix B, made exact for causal windows). The FLOPs per token of a training step are:

    6 * N_mm + 12 * H * d_head * sum of K over the layers

N_mm is the number of parameters in matrix products, which include the head but not the input
embedding or the norms. H is the number of query heads. K is the mean number of keys that a query
sees in a layer. Recomputation is not counted.
"""

from __future__ import annotations

from model.config import ModelConfig
from model.norms import NORM_PLACES

FLOP_CONVENTION = "6*N_mm + 12*L*H*d_head*K, causal and window exact, no recompute"


def matmul_parameters(config: ModelConfig) -> int:
    """Returns the number of parameters in matrix products: attention, MLP and head."""
    gates = config.num_heads if config.head_gates else 0
    attention = config.hidden_size * (2 * config.query_size + 2 * config.kv_size + gates)
    mlp = 3 * config.hidden_size * config.intermediate_size
    return config.num_layers * (attention + mlp) + config.vocab_size * config.hidden_size


def norm_parameters(config: ModelConfig) -> int:
    """Returns the number of parameters in the norms of one block."""
    return NORM_PLACES[config.norm_order].number * config.hidden_size + qk_norm_parameters(config)


def qk_norm_parameters(config: ModelConfig) -> int:
    """Returns the number of parameters in the norms of one block's queries and keys."""
    return config.query_norm_size + config.key_norm_size if config.qk_norm else 0


def biases(config: ModelConfig) -> int:
    """Returns the number of biases of all blocks, those of queries, keys and values."""
    width = config.query_size + 2 * config.kv_size
    return config.num_layers * width if config.qkv_bias else 0


def parameters(config: ModelConfig) -> int:
    """Returns the number of trainable parameters; a tied head is counted once."""
    norms = config.num_layers * norm_parameters(config) + config.hidden_size
    embedding = 0 if config.tie_embeddings else config.vocab_size * config.hidden_size
    return matmul_parameters(config) + norms + biases(config) + embedding


def mean_keys(seq_len: int, window: int | None) -> float:
    """Returns the mean number of keys that a query of a causal sequence sees, itself included."""
    if window is None or seq_len <= window:
        return (seq_len + 1) / 2
    return (window * (window + 1) / 2 + (seq_len - window) * window) / seq_len


def flops_per_token(config: ModelConfig, seq_len: int, keys: float | None = None) -> float:
    """Returns the training FLOPs per token at a sequence length.

    Args:
        config: The model.
        seq_len: Tokens per sequence.
        keys: Mean number of keys per query in every layer; None for one document per sequence.
    """
    seen = [mean_keys(seq_len, layer.window) if keys is None else keys for layer in config.layers]
    return training_flops(config, 1, sum(seen))


def training_flops(config: ModelConfig, tokens: int, keys: float) -> float:
    """Returns the training FLOPs of a batch.

    Args:
        config: The model.
        tokens: Number of tokens in the batch.
        keys: Total number of keys that the queries see, summed over all queries and layers.
    """
    return 3 * forward_flops(config, tokens, keys)


def forward_flops(config: ModelConfig, tokens: int, keys: float) -> float:
    """Returns the FLOPs of the forward pass of a batch; see `training_flops`."""
    return 2 * matmul_parameters(config) * tokens + 4 * config.query_size * keys
