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
    """loss: nats per target token; bits_per_byte: of the targets' text, so without the targets that
    stand for no text, such as the end of a document (as lm-eval counts); tokens: targets."""

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

    model(tokens, labels, cu_seqlens, of_ids=ids) returns the summed loss of the labels that are not
    IGNORED, and of those of them that `ids` (vocab,) marks.
    token_bytes: (vocab,) bytes of text that each id stands for.
    """
    losses = torch.zeros(2, dtype=torch.float64, device=device)
    text = (token_bytes > 0).to(device)
    tokens = bytes_ = 0
    for batch in batches:
        counted = batch.labels[batch.labels != IGNORED]
        tokens += counted.numel()
        bytes_ += int(token_bytes[counted].sum())
        on_device = (part.to(device) for part in (batch.tokens, batch.labels, batch.cu_seqlens))
        losses += torch.stack(model(*on_device, of_ids=text)).double()
    sums = torch.cat([losses, losses.new_tensor([tokens, bytes_])])
    if group is not None:
        dist.all_reduce(sums, group=group)
    total, of_text, targets, length = sums.tolist()
    return Score(total / targets, of_text / math.log(2) / max(1.0, length), int(targets))
