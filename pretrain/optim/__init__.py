"""The optimizer on sharded parameters, and one pass that scales and clips the gradients."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.utils import get_total_norm

from pretrain.config import OptimConfig
from pretrain.optim.muon import Muon


def build_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    """AdamW, or Muon for the matrices of the blocks with AdamW for the rest.

    Groups are of parameters that are decayed and that are not: matrices are decayed; norms and the
    embedding are not, unless the config asks for it. The head is a matrix, and a tied one is an
    embedding.
    """
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            decayed = config.decay_norms
        elif name.startswith("embed_tokens."):
            decayed = config.decay_embeddings
        else:
            decayed = True
        muon = config.name == "muon" and name.startswith("layers.") and parameter.ndim == 2
        groups.setdefault((muon, decayed), []).append(parameter)
    listed: list[dict[str, Any]] = [
        {
            "params": parameters,
            "weight_decay": config.weight_decay if decayed else 0.0,
            **({"muon": muon} if config.name == "muon" else {}),
        }
        for (muon, decayed), parameters in groups.items()
    ]
    betas = (config.beta1, config.beta2)
    if config.name == "adamw":
        return torch.optim.AdamW(
            listed, lr=config.learning_rate, betas=betas, eps=config.eps, fused=True
        )
    return Muon(
        listed,
        lr=config.learning_rate,
        betas=betas,
        eps=config.eps,
        momentum=config.muon_momentum,
        steps=config.muon_steps,
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
