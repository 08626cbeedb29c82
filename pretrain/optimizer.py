"""AdamW on sharded parameters, and one pass that scales and clips the gradients."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.utils import get_total_norm

from pretrain.config import OptimConfig


def build_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.AdamW:
    """AdamW with two groups: what is decayed and what is not.

    Matrices are decayed; norms and the embedding are not, unless the config asks for it. The head
    is a matrix, and a tied one is an embedding.
    """
    groups: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            decayed = config.decay_norms
        elif name.startswith("embed_tokens."):
            decayed = config.decay_embeddings
        else:
            decayed = True
        groups[decayed].append(parameter)
    return torch.optim.AdamW(
        [
            {"params": parameters, "weight_decay": config.weight_decay if decayed else 0.0}
            for decayed, parameters in groups.items()
            if parameters
        ],
        lr=config.learning_rate,
        betas=(config.beta1, config.beta2),
        eps=config.eps,
        fused=True,
    )


@torch.no_grad()
def scale_and_clip(parameters: Iterable[nn.Parameter], scale: Tensor, clip_norm: float) -> Tensor:
    """Multiplies all gradients by `scale`, then down to `clip_norm`; returns their norm before
    the clipping, over all ranks, as a 0-d tensor. No host sync: one pass over the gradients.
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    norm = get_total_norm(gradients)
    if isinstance(norm, DTensor):
        norm = norm.full_tensor()
    norm = norm * scale
    factor = scale
    if clip_norm > 0:
        factor = scale * torch.clamp(clip_norm / (norm + 1e-6), max=1.0)
    local = [g.to_local() if isinstance(g, DTensor) else g for g in gradients]
    torch._foreach_mul_(local, factor)
    return norm
