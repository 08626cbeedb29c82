"""Computes the bytes that the ranks of a layout communicate per step.

tests/distributed/test_traffic.py checks that they equal the traffic of real runs.
"""

from __future__ import annotations

from dataclasses import dataclass

from data_pipeline.sampling.dealing import Deal
from model.attention.mask import effective_window
from model.config import ModelConfig
from model.flops import norm_parameters, parameters, qk_norm_parameters
from pretrain.config import ParallelConfig
from pretrain.sequence_layout import busiest_exchange, gathers_all

BF16, FP32 = 2, 4
LOSS_VALUES = 3
"""Number of values per token that the vocabulary-parallel loss all-reduces: the maximum, the sum
of exponentials and the logit of the target."""


@dataclass(frozen=True)
class Traffic:
    """One kind of collective in one step.

    group: `shard` (FSDP, including context-parallel ranks), `replicate`, `tp` or `cp`.
    kind: all_gather, reduce_scatter, all_reduce or all_to_all.
    bytes: full payload of one rank in all calls: the outputs of gathers, the inputs of scatters.
    calls: number of collectives.
    """

    group: str
    kind: str
    bytes: float
    calls: int

    def sent(self, ranks: int) -> float:
        """Returns the bytes that each of `ranks` ranks sends in a ring collective."""
        factor = {"all_reduce": 2.0, "all_to_all": ranks / (ranks - 1)}.get(self.kind, 1.0)
        return factor * (ranks - 1) / ranks * self.bytes


def deal_of(parallel: ParallelConfig, seq_len: int, batch_tokens: int) -> Deal:
    """Returns how the sequences of a step are dealt to the data-parallel ranks of a layout."""
    ranks = parallel.dp_replicate * parallel.dp_shard
    return Deal.of(batch_tokens // seq_len, ranks, parallel.micro_batch_tokens // seq_len)


def traffic(
    model: ModelConfig,
    parallel: ParallelConfig,
    seq_len: int,
    batch_tokens: int,
    precision: str = "bf16",
) -> list[Traffic]:
    """Returns the collectives of a step, except those of scalars.

    If a dimension of a matrix is not divisible by the ranks, FSDP pads it and sends slightly more.
    With a window, context-parallel ranks at the ends of sequences send less than stated here.
    `batch_tokens` is the number of tokens of the step on all ranks together.
    """
    width = FP32 if precision == "fp32" else BF16
    cp, tp = parallel.cp, parallel.tp
    shards, replicas = parallel.dp_shard * cp, parallel.dp_replicate
    deal = deal_of(parallel, seq_len, batch_tokens)
    micro_batches = deal.micro_batches
    blocks, root = _local_parameters(model, tp)
    parts = model.num_layers + (1 if model.tie_embeddings else 2)
    found: list[Traffic] = []
    if shards > 1:
        times = micro_batches if parallel.sharded_accumulation is True else 1
        gathered = 2 if parallel.reshards_after_forward(shards) else 1
        found += [
            Traffic(
                "shard",
                "all_gather",
                micro_batches * (gathered * blocks + root) * width,
                micro_batches * ((gathered - 1) * model.num_layers + parts),
            ),
            Traffic("shard", "reduce_scatter", times * (blocks + root) * FP32, times * parts),
        ]
    if replicas > 1:
        sums = (blocks + root) / shards * FP32
        found.append(Traffic("replicate", "all_reduce", sums, parts))
    tokens = deal.rows * seq_len / cp
    if tp > 1:
        # Forward gathers before attention, MLP and head, and scatters after attention, MLP and
        # embedding; backward does the reverse. Norms are applied to a shard of the sequence.
        activations = tokens * model.hidden_size * width
        times = micro_batches * (4 * model.num_layers + 2)
        over_heads = model.qk_norm and model.qk_norm_width == "projection"
        norms = model.num_layers * replicated_parameters(model) + model.hidden_size
        # Forward, a norm over all heads sums the squares of queries and of keys; backward, their
        # gradients.
        sums = 4 * micro_batches * model.num_layers if over_heads else 0
        found += [
            Traffic("tp", "all_gather", times * activations, times),
            Traffic("tp", "reduce_scatter", times * activations, times),
            Traffic(
                "tp",
                "all_reduce",
                (micro_batches * LOSS_VALUES + sums) * tokens * FP32 + norms * FP32,
                micro_batches * LOSS_VALUES + sums + model.num_layers + 1,
            ),
        ]
    if cp > 1:
        found += _context_parallel(model, parallel, seq_len, deal.rows, micro_batches, width)
    return found


def _local_parameters(model: ModelConfig, tp: int) -> tuple[float, float]:
    """Returns the parameters of all blocks and of the rest on one tensor-parallel rank."""
    norms = model.num_layers * replicated_parameters(model)
    tables = (1 if model.tie_embeddings else 2) * model.vocab_size * model.hidden_size
    matrices = parameters(model) - norms - tables - model.hidden_size
    return matrices / tp + norms, tables / tp + model.hidden_size


def replicated_parameters(model: ModelConfig) -> int:
    """Returns the parameters of a block that tensor-parallel ranks do not split, its norms.

    Norms over all heads are split.
    """
    split = qk_norm_parameters(model) if model.qk_norm_width == "projection" else 0
    return norm_parameters(model) - split


def _context_parallel(
    model: ModelConfig,
    parallel: ParallelConfig,
    seq_len: int,
    sequences: int,
    micro_batches: int,
    width: int,
) -> list[Traffic]:
    """Returns the collectives of context-parallel ranks: keys, values and their gradients.

    Layers with full attention gather all keys. Layers with a window exchange those that ranks need
    of each other, and backward their gradients.
    """
    position_bytes = sequences * 2 * model.kv_size / parallel.tp * width
    balanced, size = model.has_full_attention(seq_len), parallel.cp
    whole = positions = exchanges = 0
    for layer in model.layers:
        window = effective_window(layer.window, seq_len)
        if window is None or gathers_all(size, seq_len, balanced, window):
            whole += micro_batches
        else:
            positions += micro_batches * busiest_exchange(size, seq_len, balanced, window)
            exchanges += 2 * micro_batches
    found = []
    if whole:
        payload = whole * seq_len * position_bytes
        found.append(Traffic("cp", "all_gather", payload, whole))
        found.append(Traffic("cp", "reduce_scatter", payload, whole))
    if exchanges:
        found.append(Traffic("cp", "all_to_all", positions * position_bytes, exchanges))
    return found
