"""The evaluator that runs inside of training: loss and bits per byte of held-out text."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from data_pipeline.sampling.batches import IGNORED, Batch


@dataclass(frozen=True)
class Score:
    """loss: nats per target token; bits_per_byte: of the targets' text; tokens: targets."""

    loss: float
    bits_per_byte: float
    tokens: int


@torch.no_grad()
def evaluate(
    model: nn.Module,
    batches: Iterable[Batch],
    token_bytes: Tensor,
    device: torch.device,
    group: dist.ProcessGroup | None = None,
) -> Score:
    """Scores a decoder on batches; every rank of `group` brings its own, as many as the others.

    model(tokens, labels, cu_seqlens) returns the summed loss of the labels that are not IGNORED.
    token_bytes: (vocab,) bytes of text that each id stands for.
    """
    loss = torch.zeros((), dtype=torch.float64, device=device)
    tokens = bytes_ = 0
    for batch in batches:
        counted = batch.labels[batch.labels != IGNORED]
        tokens += counted.numel()
        bytes_ += int(token_bytes[counted].sum())
        loss += model(
            batch.tokens.to(device), batch.labels.to(device), batch.cu_seqlens.to(device)
        ).double()
    sums = torch.stack([loss, loss.new_tensor(tokens), loss.new_tensor(bytes_)])
    if group is not None:
        dist.all_reduce(sums, group=group)
    total, targets, length = sums.tolist()
    return Score(total / targets, total / math.log(2) / max(1.0, length), int(targets))
