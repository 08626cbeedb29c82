"""Estimates the time of a step: a roofline of its parts, and the exposed communication.

No number was fitted to runs of this project; docs/plan.md compares it with published runs. Every
part is computed twice, with typical and with the best known speed, so that a plan is a range.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from data_pipeline.sampling.dealing import Deal
from launch.plan.cluster import ClusterConfig
from launch.plan.traffic import BF16, FP32, deal_of, traffic
from model.config import ModelConfig
from model.flops import flops_per_token, matmul_parameters, parameters
from pretrain.config import ParallelConfig

BANDWIDTH = 0.8
"""Fraction of the memory bandwidth that element-wise kernels reach (assumed)."""
HIDDEN_PASSES, INNER_PASSES = 26, 13
"""Numbers of times that a compiled block reads or writes a tensor of the residual's width and of
the MLP's width, in forward and backward together. They were counted in a profile and rounded."""
UPDATE_BYTES = 12
"""Bytes moved per fp32 parameter in an update, which reads the weight and the gradient and writes
the weight. The optimizer's state is read and written in addition."""
HOP_SECONDS = 2.5e-6
"""Latency per rank of a ring collective, which does not depend on its size and is never hidden.
llm-foundry's benchmarks of MPT-1.3B, 3B and 7B on 128 to 512 H100 show 2.2 to 3.1 us."""
RECOMPUTE = {"none": 0.0, "selective": 0.0, "full": 1 / 3}
"""Recomputed fraction of matrix products and attention, by kind of activation checkpointing."""
RECOMPUTE_ELEMENTWISE = {"none": 0.0, "selective": 1 / 3, "full": 1 / 3}
"""Recomputed fraction of element-wise operations, by kind of activation checkpointing."""


@dataclass(frozen=True)
class StepTime:
    """Seconds of one step by part.

    exposed: communication that no computation hides.
    launch: time in which the device waits for the host to launch its next kernel.
    """

    matmul: float
    attention: float
    elementwise: float
    optimizer: float
    exposed: float
    launch: float = 0.0

    @property
    def compute(self) -> float:
        """Returns the seconds without exposed communication."""
        return self.matmul + self.attention + self.elementwise + self.optimizer + self.launch

    @property
    def total(self) -> float:
        """Returns the seconds of all parts."""
        return self.compute + self.exposed

    def scaled(self, factor: float) -> StepTime:
        """Returns the time with all computation scaled by a factor."""
        return replace(
            self,
            matmul=self.matmul * factor,
            attention=self.attention * factor,
            elementwise=self.elementwise * factor,
            optimizer=self.optimizer * factor,
        )

    def with_launches(self, host_seconds: float) -> StepTime:
        """Returns the time of a step whose launches take `host_seconds` on the host."""
        return replace(self, launch=max(0.0, host_seconds - self.compute))


@dataclass(frozen=True)
class Step:
    """Model, batch, precision and layout of a step.

    state_bytes: size of the optimizer's state per parameter; the default is AdamW's two moments.
    teacher: the network of a teacher, whose forward pass is part of the step; None without one.
    """

    model: ModelConfig
    seq_len: int
    batch_tokens: int
    precision: str
    parallel: ParallelConfig
    state_bytes: float = 8.0
    teacher: ModelConfig | None = None

    @property
    def deal(self) -> Deal:
        """Returns how the sequences of the step are dealt to the data-parallel ranks."""
        return deal_of(self.parallel, self.seq_len, self.batch_tokens)


def step_time(step: Step, cluster: ClusterConfig, best: bool) -> StepTime:
    """Returns the time of a step with the best known kernels, or else with typical ones.

    The forward pass of a teacher takes a third of the computation and the communication of a step
    in bf16 that trains it.
    """
    time = training_time(step, cluster, best)
    if step.teacher is None:
        return time
    precision = "fp32" if step.precision == "fp32" else "bf16"
    parallel = replace(step.parallel, activation_checkpointing="none")
    whole = replace(step, model=step.teacher, precision=precision, parallel=parallel, teacher=None)
    other = training_time(whole, cluster, best)
    return replace(
        time,
        matmul=time.matmul + other.matmul / 3,
        attention=time.attention + other.attention / 3,
        elementwise=time.elementwise + other.elementwise / 3,
        exposed=time.exposed + other.exposed / 3,
    )


def training_time(step: Step, cluster: ClusterConfig, best: bool) -> StepTime:
    """Returns the time of a step without that of a teacher."""
    model, parallel = step.model, step.parallel
    tokens = step.deal.computed * step.seq_len / _ranks(parallel)
    peak = cluster.peak_flops(step.precision)
    gains = {"fp8": cluster.fp8_gain, "fp8_rowwise": cluster.fp8_rowwise_gain}
    gain = gains.get(step.precision, [1.0, 1.0])[best]
    blocks = 6.0 * (matmul_parameters(model) - model.vocab_size * model.hidden_size)
    head = 6 * model.vocab_size * model.hidden_size
    attention = flops_per_token(model, step.seq_len) - blocks - head
    recomputed = RECOMPUTE[parallel.activation_checkpointing]
    blocks, attention = blocks * (1 + recomputed), attention * (1 + recomputed)
    passes = 1 + RECOMPUTE_ELEMENTWISE[parallel.activation_checkpointing]
    moved_bytes = tokens * elementwise_bytes(model, step.precision) * passes
    shards = parallel.dp_shard * parallel.cp * parallel.tp
    update_bytes = parameters(model) / shards * (UPDATE_BYTES + 2 * step.state_bytes)
    bytes_per_second = cluster.memory_gb_s * 1e9 * BANDWIDTH
    time = StepTime(
        matmul=tokens * (blocks / gain + head) / (peak * cluster.matmul[best]),
        attention=tokens * attention / (peak * cluster.attention[best]),
        elementwise=moved_bytes / bytes_per_second,
        optimizer=update_bytes / bytes_per_second,
        exposed=0.0,
    )
    return replace(time, exposed=exposed_seconds(step, cluster, time))


def elementwise_bytes(model: ModelConfig, precision: str) -> int:
    """Returns the bytes moved per token by everything except matrix products and attention."""
    width = FP32 if precision == "fp32" else BF16
    passes = HIDDEN_PASSES * model.hidden_size + INNER_PASSES * model.intermediate_size
    return width * model.num_layers * passes


def exposed_seconds(step: Step, cluster: ClusterConfig, time: StepTime) -> float:
    """Returns the seconds of communication that computation does not hide.

    For data parallelism, this is the latency of the rings plus the longer of two times: that by
    which communication exceeds forward and backward, and that of the communication of one block,
    which is always exposed. For tensor and context parallelism, it is all communication.
    """
    model, parallel = step.model, step.parallel
    shards = parallel.dp_shard * parallel.cp
    sizes = {
        "tp": parallel.tp,
        "cp": parallel.cp,
        "shard": shards,
        "replicate": parallel.dp_replicate,
    }
    spans = {
        "tp": parallel.tp,
        "cp": parallel.tp * parallel.cp,
        "shard": parallel.tp * shards,
        "replicate": parallel.tp * shards * parallel.dp_replicate,
    }
    hideable = latency = inside = 0.0
    for part in traffic(model, parallel, step.seq_len, step.batch_tokens, step.precision):
        ranks = sizes[part.group]
        seconds = part.sent(ranks) / _bandwidth(cluster, spans[part.group])
        rings = 2 if part.kind == "all_reduce" else 1
        hops = rings * part.calls * (ranks - 1) * HOP_SECONDS
        if part.group in ("shard", "replicate"):
            hideable += seconds
            latency += hops
        else:
            inside += seconds + hops
    edge = hideable / model.num_layers
    hidden = time.matmul + time.attention + time.elementwise
    return latency + max(edge, hideable - hidden) + inside


def _bandwidth(cluster: ClusterConfig, span: int) -> float:
    """Returns the bytes per second within a group that spans `span` neighboring ranks."""
    inside = span <= cluster.gpus_per_node or cluster.nodes == 1
    return 1e9 * (cluster.intra_node_gb_s if inside else cluster.inter_node_gb_s)


def model_flops_utilization(step: Step, cluster: ClusterConfig, seconds: float) -> float:
    """Returns the MFU of a step relative to the peak of all GPUs; for fp8, to their bf16 peak."""
    flops = flops_of(step) * step.batch_tokens
    return flops / seconds / (cluster.peak_flops(step.precision) * _ranks(step.parallel))


def flops_of(step: Step) -> float:
    """Returns the FLOPs per token of a step, with those of the forward pass of its teacher."""
    flops = flops_per_token(step.model, step.seq_len)
    if step.teacher is not None:
        flops += flops_per_token(step.teacher, step.seq_len) / 3
    return flops


def _ranks(parallel: ParallelConfig) -> int:
    return math.prod((parallel.dp_replicate, parallel.dp_shard, parallel.cp, parallel.tp))
