"""Plans the memory and the FLOPs of a teacher that runs next to the model.

The teacher answers a micro-batch before the model's forward pass. Its weights and its answers exist
at the peak of the step. What only its forward pass needs exists when the model has no activations
yet, so it matters only if it is larger than what the model frees after its own step.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch

from model.config import ModelConfig
from model.logits import CHUNK_TOKENS
from pretrain.hardware import compute_dtype
from pretrain.objectives import build_objective, taught
from pretrain.planning.memory import (
    FP32,
    GATHERED_BLOCKS,
    Memory,
    Sizes,
    Work,
    mask_bytes,
    parameter_shapes,
    split_by_tp,
)

ID, SCORE, FLAG = 8, 4, 1
"""Bytes of an id, a score and a truth value."""


@dataclass(frozen=True)
class TeacherShape:
    """A teacher, as far as plans need it.

    network: the network that runs; None if the answers come from a cache.
    top_k: number of tokens in an answer.
    """

    network: ModelConfig | None
    top_k: int

    @cached_property
    def shapes(self) -> dict[str, torch.Size]:
        """The unsharded shapes of the network's parameters by name."""
        assert self.network is not None
        return parameter_shapes(self.network)


def teacher_of(objective: Mapping[str, Any]) -> TeacherShape | None:
    """Returns the teacher of the config group `objective`, or None if it has none.

    Raises InputError if the teacher cannot be read.
    """
    lesson = taught(build_objective(objective))
    return None if lesson is None else TeacherShape(lesson.network, lesson.top_k)


def with_teacher(
    memory: Memory, teacher: TeacherShape, model: ModelConfig, sizes: Sizes, work: Work
) -> Memory:
    """Returns the memory plan of a step with a teacher next to the model.

    Args:
        memory: The plan without the teacher.
        teacher: The teacher.
        model: The model.
        sizes: Sizes of the mesh.
        work: The work of one rank.
    """
    tokens = work.micro_batch_tokens // sizes.cp
    kept = tokens * (teacher.top_k * (ID + SCORE) + SCORE)
    # Of a chunk, the loss has scores, both distributions, and their logarithms and derivatives.
    kept += min(tokens, CHUNK_TOKENS) * teacher.top_k * (ID + FLAG + 8 * SCORE)
    if teacher.network is None:
        return replace(memory, teacher=kept)
    weights, forward = network_bytes(teacher, sizes, work)
    sums = memory.unreduced if work.accumulates and not work.sharded_accumulation else 0
    freed = memory.gathered + memory.unreduced - sums + memory.activations + memory.loss
    return replace(memory, teacher=weights + kept + max(0, forward - freed - kept))


def network_bytes(teacher: TeacherShape, sizes: Sizes, work: Work) -> tuple[int, int]:
    """Returns the bytes of a frozen network's weights, and those that its forward pass adds."""
    network, top_k = teacher.network, teacher.top_k
    assert network is not None
    size = compute_dtype(work.precision).itemsize
    local = {
        name: split_by_tp(network, name, shape, sizes.tp) for name, shape in teacher.shapes.items()
    }
    shards = sizes.dp_shard * sizes.cp
    held = sum(-(-shape[0] // shards) * shape[1:].numel() for shape in local.values())
    whole = sum(shape.numel() for shape in local.values())
    block = sum(shape.numel() for name, shape in local.items() if name.startswith("layers.0."))
    gathered = 0
    if shards * sizes.dp_replicate > 1:  # a single process has no other copy
        blocks = min(network.num_layers, GATHERED_BLOCKS)
        gathered = whole - (network.num_layers - blocks) * block
    tokens = work.micro_batch_tokens // sizes.cp
    inner = max(
        3 * network.intermediate_size // sizes.tp + network.hidden_size,
        (2 * network.query_size + 2 * network.kv_size) // sizes.tp + network.hidden_size,
    )
    stream = 2 * network.hidden_size // sizes.tp
    inside = tokens * size * (stream + inner) + mask_bytes(network, sizes, work)
    rows = network.vocab_size // sizes.tp
    copies = FP32 if size == FP32 else FP32 + size
    copies += FP32 if network.logit_softcap else 0
    copies += FP32 if sizes.tp > 1 else 0
    head = min(tokens, CHUNK_TOKENS) * (rows * copies + top_k * sizes.tp * (ID + SCORE))
    head += tokens * size * network.hidden_size
    return size * held, size * gathered + max(inside, head)
