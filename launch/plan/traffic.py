"""What the ranks of a layout send to each other in a step, in bytes: counted exactly in
tests/distributed/test_traffic.py."""

from __future__ import annotations

from dataclasses import dataclass

from data_pipeline.sampling.dealing import Deal
from model.config import ModelConfig
from model.flops import norm_parameters, parameters
from pretrain.config import ParallelConfig

BF16, FP32 = 2, 4
NUMBERS_OF_LOSS = 3
"""That a token of the vocabulary-parallel loss sums over its group: maximum, sum of exponentials,
logit of the target."""


@dataclass(frozen=True)
class Traffic:
    """One kind of collective in one step.

    group: `shard` (FSDP, context-parallel ranks among it), `replicate`, `tp` or `cp`.
    kind: all_gather, reduce_scatter, all_reduce or all_to_all.
    bytes: of a rank, of whole payloads: what a gather brings together, what a scatter takes.
    calls: how many collectives that are.
    """

    group: str
    kind: str
    bytes: float
    calls: int

    def sent(self, ranks: int) -> float:
        """Bytes that a rank of `ranks` sends when the collective is a ring."""
        factor = {"all_reduce": 2.0, "all_to_all": ranks / (ranks - 1)}.get(self.kind, 1.0)
        return factor * (ranks - 1) / ranks * self.bytes


def dealt(parallel: ParallelConfig, seq_len: int, batch_tokens: int) -> Deal:
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
    """Of the step of a rank in the middle; sums of single numbers (losses, norms) are left out.

    Where a side of a matrix does not divide by the ranks, FSDP pads it, and sends a little more.
    batch_tokens: of the whole step.
    """
    width = FP32 if precision == "fp32" else BF16
    cp, tp = parallel.cp, parallel.tp
    shards, replicas = parallel.dp_shard * cp, parallel.dp_replicate
    deal = dealt(parallel, seq_len, batch_tokens)
    micro_batches = deal.micro_batches
    blocks, root = _held(model, tp)
    parts = model.num_layers + (1 if model.tie_embeddings else 2)
    found: list[Traffic] = []
    if shards > 1:
        gathered = 2 if parallel.gathers_twice(shards) else 1
        found += [
            Traffic(
                "shard",
                "all_gather",
                micro_batches * (gathered * blocks + root) * width,
                micro_batches * ((gathered - 1) * model.num_layers + parts),
            ),
            Traffic("shard", "reduce_scatter", (blocks + root) * FP32, parts),
        ]
    if replicas > 1:
        sums = (blocks + root) / shards * FP32
        found.append(Traffic("replicate", "all_reduce", sums, parts))
    tokens = deal.rows * seq_len / cp
    if tp > 1:
        # Forward gathers before attention, MLP and head and scatters after both and after the
        # embedding; backward the other way round. Norms see parts of the sequence.
        activations = tokens * model.hidden_size * width
        times = micro_batches * (4 * model.num_layers + 2)
        norms = model.num_layers * norm_parameters(model) + model.hidden_size
        found += [
            Traffic("tp", "all_gather", times * activations, times),
            Traffic("tp", "reduce_scatter", times * activations, times),
            Traffic(
                "tp",
                "all_reduce",
                micro_batches * tokens * NUMBERS_OF_LOSS * FP32 + norms * FP32,
                micro_batches * NUMBERS_OF_LOSS + model.num_layers + 1,
            ),
        ]
    if cp > 1:
        layers = micro_batches * model.num_layers
        found += _of_sequences(model, parallel, seq_len, deal.rows, layers, width)
    return found


def _held(model: ModelConfig, tp: int) -> tuple[float, float]:
    """Parameters of all blocks, and of the rest, of one tensor-parallel rank: norms are whole."""
    norms = model.num_layers * norm_parameters(model)
    tables = (1 if model.tie_embeddings else 2) * model.vocab_size * model.hidden_size
    matrices = parameters(model) - norms - tables - model.hidden_size
    return matrices / tp + norms, tables / tp + model.hidden_size


def _of_sequences(
    model: ModelConfig,
    parallel: ParallelConfig,
    seq_len: int,
    sequences: int,
    layers: int,
    width: int,
) -> list[Traffic]:
    """Keys and values between context-parallel ranks, and their gradients back."""
    a_position = sequences * 2 * model.kv_size / parallel.tp * width
    window = model.widest_window
    if window is None or window >= seq_len:
        whole = layers * seq_len * a_position
        return [
            Traffic("cp", "all_gather", whole, layers),
            Traffic("cp", "reduce_scatter", whole, layers),
        ]
    halo = min(window - 1, seq_len * (parallel.cp - 1) // parallel.cp)
    return [Traffic("cp", "all_to_all", 2 * layers * halo * a_position, 2 * layers)]
