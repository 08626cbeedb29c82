"""How long a step takes: a roofline of its parts, and the communication that nothing hides.

Nothing of it was fitted to a run of ours; docs/plan.md holds it against published runs. Every part
comes twice, as it usually is and at the best that is known: a plan is a range.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from launch.plan.cluster import ClusterConfig
from model.config import ModelConfig
from model.flops import flops_per_token, matmul_parameters, parameters
from pretrain.config import ParallelConfig

BANDWIDTH = 0.8
"""Share of the memory's bandwidth that element-wise kernels reach (assumed)."""
HIDDEN_PASSES, INNER_PASSES = 26, 13
"""How often a compiled block reads or writes a value of the residual's and of the MLP's width, in
forward and backward together (counted in a profile of such a block, rounded)."""
OPTIMIZER_BYTES = 28
"""A float32 parameter's weight, gradient and two moments read, all but the gradient written."""
HOP_SECONDS = 2.5e-6
"""What a ring collective costs for each rank in it, whatever it carries, and nothing hides: the
slope of MPT-1.3B, 3B and 7B from 128 to 512 H100 (llm-foundry's benchmarks) is 2.2 to 3.1 us."""
RECOMPUTE = {"none": 0.0, "selective": 0.0, "full": 1 / 3}
"""Of matrix products and attention, by activation checkpointing."""
RECOMPUTE_ELEMENTWISE = {"none": 0.0, "selective": 1 / 3, "full": 1 / 3}
BF16, FP32 = 2, 4


@dataclass(frozen=True)
class StepTime:
    """Seconds of one step, by part. exposed: communication that no computation hides."""

    matmul: float
    attention: float
    elementwise: float
    optimizer: float
    exposed: float

    @property
    def compute(self) -> float:
        """What one GPU alone would take."""
        return self.matmul + self.attention + self.elementwise + self.optimizer

    @property
    def total(self) -> float:
        """All parts."""
        return self.compute + self.exposed

    def scaled(self, factor: float) -> StepTime:
        """Computation made longer by a factor, as a measurement says."""
        return replace(
            self,
            matmul=self.matmul * factor,
            attention=self.attention * factor,
            elementwise=self.elementwise * factor,
            optimizer=self.optimizer * factor,
        )


@dataclass(frozen=True)
class Step:
    """What a step is made of, in one layout."""

    model: ModelConfig
    seq_len: int
    batch_tokens: int
    precision: str
    parallel: ParallelConfig


def step_time(step: Step, cluster: ClusterConfig, best: bool) -> StepTime:
    """best: with the best known kernels, else with usual ones."""
    model, parallel = step.model, step.parallel
    ranks = parallel.dp_replicate * parallel.dp_shard * parallel.cp * parallel.tp
    tokens = step.batch_tokens / ranks
    peak = cluster.bf16_tflops * 1e12
    gains = {"fp8": cluster.fp8_gain, "fp8_rowwise": cluster.fp8_rowwise_gain}
    gain = gains.get(step.precision, [1.0, 1.0])[best]
    blocks = 6.0 * (matmul_parameters(model) - model.vocab_size * model.hidden_size)
    head = 6 * model.vocab_size * model.hidden_size
    attention = flops_per_token(model, step.seq_len) - blocks - head
    again = RECOMPUTE[parallel.activation_checkpointing]
    blocks, attention = blocks * (1 + again), attention * (1 + again)
    usual = peak * cluster.matmul[best]
    passes = 1 + RECOMPUTE_ELEMENTWISE[parallel.activation_checkpointing]
    moved = tokens * elementwise_bytes(model) * passes
    held = parameters(model) / (parallel.dp_shard * parallel.cp * parallel.tp)
    memory = cluster.memory_gb_s * 1e9 * BANDWIDTH
    time = StepTime(
        matmul=tokens * (blocks / gain + head) / usual,
        attention=tokens * attention / (peak * cluster.attention[best]),
        elementwise=moved / memory,
        optimizer=held * OPTIMIZER_BYTES / memory,
        exposed=0.0,
    )
    return replace(time, exposed=exposed_seconds(step, cluster, time))


def elementwise_bytes(model: ModelConfig) -> int:
    """Bytes per token of all that is not a matrix product or attention."""
    passes = HIDDEN_PASSES * model.hidden_size + INNER_PASSES * model.intermediate_size
    return BF16 * model.num_layers * passes


def exposed_seconds(step: Step, cluster: ClusterConfig, time: StepTime) -> float:
    """Communication that computation does not hide.

    Data parallel: what is more than forward and backward take, the first block's gathering and the
    last one's reduction, and the latency of each ring. Tensor and context parallel: all of it.
    """
    model, parallel = step.model, step.parallel
    shards = parallel.dp_shard * parallel.cp
    micro_batches = max(
        1,
        step.batch_tokens
        // (parallel.micro_batch_tokens * parallel.dp_replicate * parallel.dp_shard),
    )
    local = parameters(model) / parallel.tp
    seconds = 0.0
    latency = 0.0
    if shards > 1:
        speed = _bandwidth(cluster, parallel.tp * shards)
        gathers = micro_batches * (2 if parallel.reshard_after_forward else 1)
        share = (shards - 1) / shards
        seconds += share * local * (gathers * BF16 + FP32) / speed
        latency += (gathers + 1) * model.num_layers * (shards - 1) * HOP_SECONDS
    if parallel.dp_replicate > 1:
        replicas = parallel.dp_replicate
        speed = _bandwidth(cluster, parallel.tp * shards * replicas)
        seconds += 2 * (replicas - 1) / replicas * (local / shards) * FP32 / speed
        latency += 2 * model.num_layers * (replicas - 1) * HOP_SECONDS
    edge = seconds / model.num_layers
    hidden = time.matmul + time.attention + time.elementwise
    exposed = latency + max(edge, seconds - hidden)
    return exposed + _inside_layers(step, cluster, micro_batches)


def _inside_layers(step: Step, cluster: ClusterConfig, micro_batches: int) -> float:
    """Of tensor parallel, the activations gathered and scattered, four times a layer in forward and
    in backward; of context parallel, keys and values, and their gradients."""
    model, parallel = step.model, step.parallel
    tokens = step.batch_tokens / (parallel.dp_replicate * parallel.dp_shard)
    seconds = 0.0
    if parallel.tp > 1:
        moved = 8 * tokens / parallel.cp * model.hidden_size * BF16
        share = (parallel.tp - 1) / parallel.tp
        seconds += share * moved / _bandwidth(cluster, parallel.tp)
        seconds += 8 * micro_batches * (parallel.tp - 1) * HOP_SECONDS
    if parallel.cp > 1:
        window = model.sliding_window
        keys = step.seq_len * (parallel.cp - 1) / parallel.cp
        if window is not None:
            keys = min(keys, window - 1)
        moved = 2 * tokens / step.seq_len * keys * 2 * model.kv_size / parallel.tp * BF16
        seconds += moved / _bandwidth(cluster, parallel.tp * parallel.cp)
        seconds += 2 * micro_batches * (parallel.cp - 1) * HOP_SECONDS
    return model.num_layers * seconds


def _bandwidth(cluster: ClusterConfig, span: int) -> float:
    """Bytes a second between ranks of a group that spans as many neighbours."""
    inside = span <= cluster.gpus_per_node or cluster.nodes == 1
    return 1e9 * (cluster.intra_node_gb_s if inside else cluster.inter_node_gb_s)


def model_flops_utilization(step: Step, cluster: ClusterConfig, seconds: float) -> float:
    """MFU of a step against the bf16 peak of all GPUs."""
    flops = flops_per_token(step.model, step.seq_len) * step.batch_tokens
    return flops / seconds / (cluster.bf16_tflops * 1e12 * _ranks(step.parallel))


def _ranks(parallel: ParallelConfig) -> int:
    return math.prod((parallel.dp_replicate, parallel.dp_shard, parallel.cp, parallel.tp))
