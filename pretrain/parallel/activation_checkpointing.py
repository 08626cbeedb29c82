"""Activation checkpointing, which recomputes activations of a block instead of keeping them.

Per token and block, full checkpointing keeps only the block's input. Selective checkpointing also
keeps the outputs of matrix products and attention, and recomputes the rest (norms, rotations, SiLU,
sums), which costs memory traffic but almost no FLOPs.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

from model.layers import Block
from model.network import Decoder

MODES = ("none", "selective", "full")

KEPT_OPS = frozenset(
    (
        "aten.mm",
        "aten.bmm",
        "aten.addmm",
        "aten.linear",
        "aten._scaled_mm",
        "aten.max",  # the scale of an fp8 cast, which reads a whole matrix to return one number
        "aten._scaled_dot_product_flash_attention",
        "aten._scaled_dot_product_flash_attention_for_cpu",
        "aten._scaled_dot_product_efficient_attention",
        "aten._scaled_dot_product_cudnn_attention",
        "torch_attn._varlen_attn",
        "flash_attn._flash_attn_varlen_forward",
        "flex_attention",
        "inductor_compiled_code",  # FlexAttention in blocks that are not compiled
        # Keeping these outputs avoids repeating the communication. All-gathers are repeated: their
        # outputs are as large as what tensor and context parallelism exist to split.
        "_c10d_functional.reduce_scatter_tensor",
        "_c10d_functional.all_reduce",
        "_c10d_functional.all_to_all_single",
    )
)
"""Operators whose outputs selective checkpointing keeps."""


def apply_activation_checkpointing(model: Decoder, mode: str) -> None:
    """Enables recomputation in every block, in place. mode: one of MODES.

    The blocks remain the same modules, with their names and hooks. FSDP's hooks run outside the
    recomputation, so the weights are gathered only once for recomputation and backward.
    """
    if mode == "none":
        return
    for block in model.layers:
        # Changing the class, not each instance's forward, lets all blocks share a compiled graph.
        block.__class__ = _SelectiveBlock if mode == "selective" else _FullBlock


class _FullBlock(Block):
    def forward(self, *args: Any) -> Tensor:
        return checkpoint(super().forward, *args, use_reentrant=False, preserve_rng_state=False)


class _SelectiveBlock(Block):
    def forward(self, *args: Any) -> Tensor:
        return checkpoint(
            super().forward,
            *args,
            use_reentrant=False,
            preserve_rng_state=False,
            context_fn=partial(create_selective_checkpoint_contexts, _policy),
        )


def _policy(_: Any, op: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    # Operators are compared by name, because some exist only once their backend is imported.
    kept = str(getattr(op, "overloadpacket", op)) in KEPT_OPS
    return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE
