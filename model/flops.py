"""Counting: parameters, FLOPs per token, bytes. Convention I10 of the project.

FLOPs per token of a training step, forward 2 and backward 4 per multiply-add
(PaLM, arXiv 2204.02311, appendix B, made exact for causal windows):

    6 * N_mm + 12 * L * H * d_head * K

N_mm are the parameters of matrix products with the head, without the input embedding and the
norms; K is the mean number of keys that a query sees. Recomputation is not counted.
"""

from __future__ import annotations

from model.config import ModelConfig

FLOP_CONVENTION = "6*N_mm + 12*L*H*d_head*K, causal and window exact, no recompute"


def matmul_parameters(config: ModelConfig) -> int:
    """Parameters in matrix products: attention, MLP and head."""
    attention = 2 * config.hidden_size * (config.query_size + config.kv_size)
    mlp = 3 * config.hidden_size * config.intermediate_size
    return config.num_layers * (attention + mlp) + config.vocab_size * config.hidden_size


def parameters(config: ModelConfig) -> int:
    """All trainable parameters; a tied head is counted once."""
    norms = (2 * config.num_layers + 1) * config.hidden_size
    embedding = 0 if config.tie_embeddings else config.vocab_size * config.hidden_size
    return matmul_parameters(config) + norms + embedding


def mean_keys(seq_len: int, window: int | None) -> float:
    """Mean number of keys that a query of a causal sequence attends to, itself included."""
    if window is None or seq_len <= window:
        return (seq_len + 1) / 2
    return (window * (window + 1) / 2 + (seq_len - window) * window) / seq_len


def flops_per_token(config: ModelConfig, seq_len: int, keys: float | None = None) -> float:
    """Training FLOPs per token at a sequence length.

    keys: mean keys per query where documents end inside a sequence; by default that of one
        document as long as the sequence.
    """
    keys = mean_keys(seq_len, config.sliding_window) if keys is None else keys
    return 6 * matmul_parameters(config) + 12 * config.num_layers * config.query_size * keys
