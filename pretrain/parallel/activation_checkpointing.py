"""What a block keeps between forward and backward, and what it computes again.

Per token and block, full checkpointing keeps only the block's input; selective checkpointing keeps
the outputs of matrix products and attention too, and computes the cheap rest (norms, rotations,
SiLU, sums) again, which costs memory traffic but nearly no FLOPs.
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
        "aten._scaled_mm",
        "aten._scaled_dot_product_flash_attention",
        "aten._scaled_dot_product_flash_attention_for_cpu",
        "aten._scaled_dot_product_efficient_attention",
        "aten._scaled_dot_product_cudnn_attention",
        "torch_attn._varlen_attn",
        "flash_attn._flash_attn_varlen_forward",
        "flex_attention",
        # Under tensor parallelism: what other ranks would have to send once more.
        "_c10d_functional.reduce_scatter_tensor",
        "_c10d_functional.all_reduce",
    )
)
"""Selective checkpointing keeps the outputs of these."""


def apply_activation_checkpointing(model: Decoder, mode: str) -> None:
    """Makes every block compute again in place; `none` leaves them as they are.

    The blocks stay the modules that they were, with their names and hooks. FSDP's hooks lie
    outside: a block's weights are gathered once for recomputation and backward.
    """
    if mode == "none":
        return
    for block in model.layers:
        # The class, not a function in the instance, so that one compiled graph serves all blocks.
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
    # By name: an op may be registered only when its backend is first imported.
    kept = str(getattr(op, "overloadpacket", op)) in KEPT_OPS
    return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE
