"""Plans the peak memory of a step in closed form, for the rank that holds the most.

The state (weights, gradients, optimizer) is exact, because it follows from the shapes and the
layout. Activations are the tensors that autograd saves, counted as in Korthikanti et al. (arXiv
2205.05198, section 4) for the blocks of this project. Tests compare them with measured bytes;
torch.compile saves less. The rest is an upper bound for the tensors that FSDP2 keeps for the
running block (see torch's notes on `fully_shard`).

The peak is at the start of the last block's backward pass, when all activations and the gradients
of all earlier micro-batches exist.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import NamedTuple

import torch

from model.attention.mask import effective_window
from model.config import ModelConfig
from model.init import RESIDUAL_WRITERS
from model.logits import CHUNK_TOKENS
from model.network import build_meta
from model.norms import NORM_PLACES
from pretrain.hardware import compute_dtype
from pretrain.optim import optimizer_of
from pretrain.sequence_layout import fetched_keys

FP32 = 4
GATHERED_BLOCKS = 2
"""Number of blocks with gathered weights: the running one and the next, which is prefetched."""
HEAD_NORMS = ("q_norm.weight", "k_norm.weight")
"""Weights of the norms of queries and keys."""
RUNTIME_BYTES = 1 << 30
"""Memory of libraries and communication on a GPU outside of torch's allocator (assumed)."""


class Sizes(NamedTuple):
    """Sizes of the device mesh, in the order of its dimensions."""

    dp_replicate: int = 1
    dp_shard: int = 1
    cp: int = 1
    tp: int = 1


@dataclass(frozen=True)
class Memory:
    """Bytes of one rank at the peak of a step, by part.

    weights, gradients, optimizer: the sharded state, in float32. A running average of the weights
        counts as weights.
    gathered: gathered weights of the running blocks, embedding and head, in the compute dtype.
    unreduced: unsharded gradients in addition to `gradients`: those of the running blocks or, if a
        step reduces its gradients once, the float32 sums over its micro-batches.
    activations: tensors kept for the backward pass, and those that one block recomputes.
    loss: gradients of the head and of its input, which the forward pass computes, plus the larger
        of the gradients inside a block and the logits of one chunk, as far as these need more than
        a recomputed block, which is counted in `activations` and does not exist at that time.
    buffers: buffers of collectives and libraries.
    teacher: weights of a teacher that runs next to the model, its answers, and what its forward
        pass needs beyond the parts that do not exist yet at that time (`planning.teacher`).
    """

    weights: int
    gradients: int
    optimizer: int
    gathered: int
    unreduced: int
    activations: int
    loss: int
    buffers: int
    teacher: int = 0

    @property
    def state(self) -> int:
        """Returns the bytes of weights, gradients and optimizer state."""
        return self.weights + self.gradients + self.optimizer

    @property
    def total(self) -> int:
        """Returns the sum of all parts."""
        return sum(asdict(self).values())

    def with_activations(self, ratio: float) -> Memory:
        """Returns the memory with the activations and the loss scaled by a measured ratio."""
        activations, loss = (int(size * ratio) for size in (self.activations, self.loss))
        return replace(self, activations=activations, loss=loss)


CONFIDENCE = {
    "weights": "exact",
    "gradients": "exact",
    "optimizer": "exact",
    "gathered": "assumed",
    "unreduced": "assumed",
    "activations": "assumed",
    "loss": "assumed",
    "buffers": "assumed",
    "teacher": "assumed",
}
"""Confidence of each part.

An exact part follows from the shapes and the layout. An assumed part is an estimate of the tensors
that autograd and FSDP2 keep, which tests compare with measured bytes, or a round number (buffers).
"""


def shown_parts(plans: Iterable[Memory]) -> list[str]:
    """Returns the parts to show of several plans: all, or all but `teacher` if none has one."""
    is_taught = any(plan.teacher for plan in plans)
    return [name for name in CONFIDENCE if is_taught or name != "teacher"]


@dataclass(frozen=True)
class Work:
    """The work of one rank in a forward pass.

    micro_batch_tokens: tokens of a micro-batch, before context parallelism splits its sequences.
    accumulates: whether a step has more than one micro-batch.
    sharded_accumulation: whether gradients are reduced after every micro-batch.
    checkpointing: `none`, `selective` or `full`.
    reshard: whether the weights of blocks are gathered again for the backward pass.
    dense_mask: whether attention may use a mask (sequences, 1, seq, seq) per window.
    repeated_kv: whether attention keeps keys and values for each head of the queries.
    device: `cuda` or `cpu`.
    """

    precision: str
    micro_batch_tokens: int
    seq_len: int
    accumulates: bool = True
    sharded_accumulation: bool = False
    checkpointing: str = "none"
    reshard: bool = True
    dense_mask: bool = False
    repeated_kv: bool = False
    device: str = "cuda"

    @property
    def fused_norm(self) -> bool:
        """Returns whether RMSNorm is one kernel; on a CPU its float32 intermediates are saved."""
        return self.device == "cuda"


def parameter_shapes(config: ModelConfig) -> dict[str, torch.Size]:
    """Returns the unsharded shapes of all parameters by name."""
    return {name: p.shape for name, p in build_meta(config).named_parameters()}


def plan_memory(
    config: ModelConfig,
    shapes: Mapping[str, torch.Size],
    sizes: Sizes,
    work: Work,
    optimizer: str = "adamw",
    averaged: bool = False,
) -> Memory:
    """Returns the memory plan for one layout.

    Args:
        config: The model.
        shapes: `parameter_shapes(config)`.
        sizes: Sizes of the mesh.
        work: The work of one rank.
        optimizer: Name of the optimizer.
        averaged: Whether the device holds a running average of the weights.
    """
    size = compute_dtype(work.precision).itemsize
    local = {name: split_by_tp(config, name, shape, sizes.tp) for name, shape in shapes.items()}
    shards = sizes.dp_shard * sizes.cp
    held = {name: -(-shape[0] // shards) * shape[1:].numel() for name, shape in local.items()}
    sharded = sum(held.values())
    whole = sum(shape.numel() for shape in local.values())
    block = sum(shape.numel() for name, shape in local.items() if name.startswith("layers.0."))
    root = whole - block * config.num_layers
    state_bytes = optimizer_of(optimizer).state_bytes
    gathered_blocks = min(config.num_layers, GATHERED_BLOCKS) if work.reshard else config.num_layers
    tokens = work.micro_batch_tokens // sizes.cp
    loss_kept, loss_chunk = loss_bytes(config, tokens, sizes.tp, size)
    block_gradients = tokens * block_gradient_bytes(config, sizes.tp, size)
    keeps_whole = work.accumulates and not work.sharded_accumulation
    # Weights are gathered into a buffer, and gradients copied into one; two of each are in use.
    buffers = 2 * block * (size + FP32) if shards > 1 else 0
    return Memory(
        weights=FP32 * sharded * (2 if averaged else 1),
        gradients=FP32 * sharded,
        optimizer=sum(state_bytes(name, shapes[name], count) for name, count in held.items()),
        gathered=size * (root + gathered_blocks * block),
        unreduced=FP32 * (whole - sharded) if keeps_whole else size * (root + block),
        activations=activation_bytes(config, sizes, work),
        # No block is recomputed yet when the loss has its logits.
        loss=loss_kept + max(loss_chunk - recomputed_bytes(config, sizes, work), block_gradients),
        buffers=buffers + (RUNTIME_BYTES if work.device == "cuda" else 0),
    )


def split_by_tp(config: ModelConfig, name: str, shape: torch.Size, tp: int) -> torch.Size:
    """Returns the shape of a parameter on one tensor-parallel rank (Megatron, arXiv 1909.08053).

    Biases are split, and norms are replicated, except for those over all heads. The (out, in)
    weights of o_proj and down_proj are split by columns, and all others by rows.
    """
    if len(shape) == 1:
        over_heads = config.qk_norm_width == "projection" and name.endswith(HEAD_NORMS)
        is_split = over_heads or name.endswith(".bias")
        return torch.Size((shape[0] // tp,)) if is_split else shape
    rows, columns = shape
    if name.endswith(RESIDUAL_WRITERS):
        return torch.Size((rows, columns // tp))
    return torch.Size((rows // tp, columns))


def optimizer_bytes(shapes: Mapping[str, torch.Size], optimizer: str) -> int:
    """Returns the bytes of state that an optimizer keeps for unsharded parameters."""
    state_bytes = optimizer_of(optimizer).state_bytes
    return sum(state_bytes(name, shape, shape.numel()) for name, shape in shapes.items())


def activation_bytes(config: ModelConfig, sizes: Sizes, work: Work) -> int:
    """Returns the bytes that a micro-batch keeps for backward, including one recomputed block."""
    size = compute_dtype(work.precision).itemsize
    tokens = work.micro_batch_tokens // sizes.cp
    windows = [layer.window for layer in config.layers]
    blocks = [_kept_by_block(config, sizes, work, window) for window in windows]
    residual = tokens * size * config.hidden_size // sizes.tp
    last = tokens * _norm_bytes(config, sizes.tp, size, work.fused_norm)  # the one before the head
    tables = len({layer.rope for layer in config.layers if layer.rope})  # cosines and sines
    last += tables * (work.seq_len // sizes.cp * 2 * size * config.query_size // config.num_heads)
    last += mask_bytes(config, sizes, work)
    if work.checkpointing == "none":
        return sum(blocks) + last
    kept = residual
    if work.checkpointing == "selective":
        kept += tokens * _selected_bytes(config, sizes.tp, size)
    return config.num_layers * kept + max(blocks) + last


def mask_bytes(config: ModelConfig, sizes: Sizes, work: Work) -> int:
    """Returns the bytes of the dense masks, each shared by all layers of one window."""
    if not work.dense_mask:
        return 0
    tokens = work.micro_batch_tokens // sizes.cp
    windows = {layer.window for layer in config.layers}
    keys = sum(_keys(config, sizes, work, window) for window in windows)
    return tokens * keys * compute_dtype(work.precision).itemsize


def recomputed_bytes(config: ModelConfig, sizes: Sizes, work: Work) -> int:
    """Returns the part of `activation_bytes` that exists only while a block is recomputed."""
    if work.checkpointing == "none":
        return 0
    return max(_kept_by_block(config, sizes, work, layer.window) for layer in config.layers)


def _kept_by_block(config: ModelConfig, sizes: Sizes, work: Work, window: int | None) -> int:
    """Returns the bytes that a block with a window keeps for backward without checkpointing."""
    size = compute_dtype(work.precision).itemsize
    tokens = work.micro_batch_tokens // sizes.cp
    inside = tokens * _block_bytes(config, sizes.tp, size, work.fused_norm)
    return inside + _attention_bytes(config, sizes, work, window)


def _norm_bytes(config: ModelConfig, tp: int, size: int, fused: bool) -> int:
    """Returns the bytes per token that an RMSNorm keeps for the backward pass."""
    return FP32 + _normalized_bytes(config, config.hidden_size // tp, size, fused)


def _normalized_bytes(config: ModelConfig, width: int, size: int, fused: bool) -> int:
    """Returns the bytes that a norm keeps of `width` values, in addition to one float32.

    The fused kernel keeps its input, which a zero-centered norm converts to float32. Without the
    kernel, the input in float32 and the normalized input are kept.
    """
    if not fused:
        return 2 * FP32 * width
    return (FP32 if config.zero_centered_norms else size) * width


def _qk_norm_bytes(config: ModelConfig, tp: int, size: int, fused: bool) -> int:
    """Returns the bytes per token of the norms of queries and keys; 0 without such norms."""
    if not config.qk_norm:
        return 0
    width = (config.query_size + config.kv_size) // tp
    if config.qk_norm_width == "projection":  # split over ranks, it has no kernel
        return FP32 * 2 + _normalized_bytes(config, width, size, fused and tp == 1)
    heads = (config.num_heads + config.num_kv_heads) // tp
    return FP32 * heads + _normalized_bytes(config, width, size, fused)


def _block_bytes(config: ModelConfig, tp: int, size: int, fused_norm: bool) -> int:
    """Returns the bytes per token that a block keeps, except for keys and values.

    They are those of the norms; the inputs of attention and of the MLP, which tensor parallelism
    does not split; the rotated queries, the output of attention and its log-sum-exp; and the gate,
    its activation, up, and their product. Gates of heads are kept, and the gated output.
    """
    gated = config.query_size + config.num_heads if config.head_gates else 0
    matrices = (2 * config.query_size + 4 * config.intermediate_size + gated) // tp
    return (
        NORM_PLACES[config.norm_order].number * _norm_bytes(config, tp, size, fused_norm)
        + _qk_norm_bytes(config, tp, size, fused_norm)
        + size * (2 * config.hidden_size + matrices)
        + FP32 * config.num_heads // tp
    )


def _attention_bytes(config: ModelConfig, sizes: Sizes, work: Work, window: int | None) -> int:
    """Returns the bytes of the keys and values that a block's queries need."""
    size = compute_dtype(work.precision).itemsize
    sequences = work.micro_batch_tokens // work.seq_len
    keys = _keys(config, sizes, work, window)
    width = config.query_size if work.repeated_kv else config.kv_size
    return sequences * keys * size * 2 * width // sizes.tp


def _keys(config: ModelConfig, sizes: Sizes, work: Work, window: int | None) -> int:
    """Returns the number of keys of a sequence that a rank needs in layers with a window."""
    if sizes.cp == 1:
        return work.seq_len
    reach = effective_window(window, work.seq_len)
    balanced = config.has_full_attention(work.seq_len)
    fetched = fetched_keys(sizes.cp, work.seq_len, balanced, reach)
    return work.seq_len // sizes.cp + fetched


def _selected_bytes(config: ModelConfig, tp: int, size: int) -> int:
    """Returns the bytes per token that selective activation checkpointing keeps of a block.

    These are the outputs of the seven matrices, of that of the gates and of attention.
    """
    gates = config.num_heads if config.head_gates else 0
    split = 2 * config.query_size + 2 * config.kv_size + 2 * config.intermediate_size + gates
    reduced = 2 * config.hidden_size // tp if tp > 1 else 0
    values = split // tp + 2 * config.hidden_size + reduced
    return size * values + FP32 * config.num_heads // tp


def loss_bytes(config: ModelConfig, tokens: int, tp: int, size: int) -> tuple[int, int]:
    """Returns the bytes that the loss keeps until backward, and the bytes for one token chunk."""
    rows = config.vocab_size // tp
    kept = size * tokens * config.hidden_size + FP32 * rows * config.hidden_size
    values = (FP32 if size == FP32 else FP32 + size) + (FP32 if config.logit_softcap else 0)
    logits = min(tokens, CHUNK_TOKENS) * rows * values
    return kept, logits + size * rows * config.hidden_size


def block_gradient_bytes(config: ModelConfig, tp: int, size: int) -> int:
    """Returns the bytes per token of the gradients that a block's backward holds at its peak.

    These are the gradients of the MLP's three inner values, its input and its output.
    """
    return size * (3 * config.intermediate_size // tp + 2 * config.hidden_size)
