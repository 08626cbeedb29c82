"""Tensor and sequence parallelism of a decoder.

Attention heads, MLP columns and the vocabulary are split over ranks (Megatron, arXiv 1909.08053).
Between the matrix products, activations are split along the sequence, so that the ranks do not
repeat each other's norms (arXiv 2205.05198):

    split --norm--> split --all-gather--> q, k, v --attention--> o --reduce-scatter--> split
    split --norm--> split --all-gather--> gate, up ------------> down --reduce-scatter--> split

Norms after attention or the MLP are applied to the split results of the reduce-scatter. A norm over
all queries or keys of a token is split like the heads, and reduces one number per token
(`sharded_norm`).
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed._functional_collectives import AsyncCollectiveTensor, all_gather_tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    ParallelStyle,
    PrepareModuleInput,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)
from torch.nn import Parameter

from model.layers import Attention
from model.logits import TopK, capped
from model.loss import Head, Penalty
from model.network import Decoder
from model.norms import NORM_PLACES
from model.soft_targets import SoftTargets
from pretrain.parallel.sharded_norm import ShardedRMSNorm

SEQUENCE = Shard(1)
"""Placement of activations (batch, seq, hidden) between the matrix products."""
HEADS = 2
"""Dimension of the heads in queries and keys (batch, seq, heads, head_dim)."""


def apply_tensor_parallel(model: Decoder, mesh: DeviceMesh) -> None:
    """Splits `model` in place over a one-dimensional mesh."""
    attention_input = PrepareModuleInput(
        input_layouts=(SEQUENCE, None, None, None),
        desired_input_layouts=(Replicate(), None, None, None),
    )
    parallelize_module(
        model,
        mesh,
        {
            "embed_tokens": RowwiseParallel(input_layouts=Replicate(), output_layouts=SEQUENCE),
            "norm": SequenceParallel(),
        },
    )
    model.embed_tokens.register_forward_hook(lambda module, args, out: _Arrived.apply(out))
    places = NORM_PLACES[model.config.norm_order]
    norms: dict[str, ParallelStyle] = {}
    for name in (places.before_attention, places.before_mlp):
        if name is not None:
            norms[name] = SequenceParallel()
    for name in (places.after_attention, places.after_mlp):
        if name is not None:  # the result is added to the residual stream
            norms[name] = SequenceParallel(use_local_output=True)
    for block in model.layers:
        parallelize_module(
            block,
            mesh,
            {
                **norms,
                "self_attn": attention_input,
                "self_attn.q_proj": ColwiseParallel(),
                "self_attn.k_proj": ColwiseParallel(),
                "self_attn.v_proj": ColwiseParallel(),
                "self_attn.o_proj": RowwiseParallel(output_layouts=SEQUENCE),
                "mlp": PrepareModuleInput(
                    input_layouts=(SEQUENCE,), desired_input_layouts=(Replicate(),)
                ),
                "mlp.gate_proj": ColwiseParallel(),
                "mlp.up_proj": ColwiseParallel(),
                "mlp.down_proj": RowwiseParallel(output_layouts=SEQUENCE),
            },
        )
        if model.config.head_gates:  # split like the heads
            parallelize_module(block, mesh, {"self_attn.g_proj": ColwiseParallel()})
        if model.config.qk_norm and model.config.qk_norm_width == "projection":
            attention = cast(Attention, block.self_attn)
            assert attention.q_norm is not None
            assert attention.k_norm is not None
            attention.q_norm = ShardedRMSNorm(attention.q_norm, mesh)
            attention.k_norm = ShardedRMSNorm(attention.k_norm, mesh)
        elif model.config.qk_norm:
            # Each rank normalizes its own heads. The weight's gradient is summed over ranks.
            norm = SequenceParallel(sequence_dim=HEADS, use_local_output=True)
            parallelize_module(block, mesh, {"self_attn.q_norm": norm, "self_attn.k_norm": norm})
    model.lm_head = VocabularyParallelHead(model.lm_head, mesh)
    model.tie()


class _Arrived(torch.autograd.Function):
    """Returns a tensor once its collective has ended, without copying it.

    A compiled block that gets one whose collective is still running gives it no gradient.
    """

    @staticmethod
    def forward(ctx: Any, local: Tensor) -> Tensor:
        if isinstance(local, AsyncCollectiveTensor):
            return local.trigger_wait()
        return local.view_as(local)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad


class VocabularyParallelHead(Head):
    """A head that holds one rank's rows of the vocabulary.

    The loss gathers no logits, and reduces only three numbers per token (arXiv 1909.08053, section
    3), and one more for each token of a teacher's answer.
    """

    def __init__(self, head: Head, mesh: DeviceMesh) -> None:
        super().__init__(head.in_features, head.out_features, head.softcap)
        self.weight = Parameter(distribute_tensor(head.weight, mesh, [Shard(0)]))
        self.mesh = mesh
        self.start = mesh.get_local_rank() * (head.out_features // mesh.size())

    def reduce_max(self, x: Tensor) -> Tensor:
        """Returns the elementwise maximum over the ranks of the mesh; changes `x` in place."""
        dist.all_reduce(x, dist.ReduceOp.MAX, group=self.mesh.get_group())
        return x

    def reduce_sum(self, x: Tensor) -> Tensor:
        """Returns the elementwise sum over the ranks of the mesh; changes `x` in place."""
        dist.all_reduce(x, group=self.mesh.get_group())
        return x

    def gather(self, x: Tensor) -> Tensor:
        """Returns the columns of x (tokens, columns) of all ranks, in their order."""
        return all_gather_tensor(x.contiguous(), 1, self.mesh.get_group())

    def forward(  # type: ignore[override]
        self,
        hidden: Tensor,
        labels: Tensor | None = None,
        penalty: Penalty | None = None,
        soft_targets: SoftTargets | None = None,
        top_k: TopK | None = None,
    ) -> Tensor | tuple[Tensor, ...]:
        """Returns the same as `Head.forward`, from hidden (batch, seq, hidden) split along seq."""
        rows = cast(DTensor, hidden).redistribute(placements=[Replicate()])
        local = rows.to_local(grad_placements=[Partial()])
        weight = cast(DTensor, self.weight).to_local()
        if top_k is not None:
            return self.answers(local, weight, top_k, self)
        if labels is None:
            logits = DTensor.from_local(local @ weight.t(), self.mesh, [Shard(2)])
            return capped(logits.full_tensor(), self.softcap)
        return self.losses(local, weight, labels, penalty, soft_targets, self)
