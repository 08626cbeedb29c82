"""Validation during training: loss and bits per byte of held-out text."""

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
    """Held-out loss of a model on one source.

    loss: nats per target token.
    bits_per_byte: bits per byte of text. Targets that encode no text, such as the end of a
        document, do not count, as in lm-eval.
    tokens: number of target tokens.
    """

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
    """Returns the score of a decoder over the batches of all ranks.

    Every rank of `group` passes its own batches, and all ranks pass the same number.

    model(tokens, labels, cu_seqlens, id_mask=mask, max_seqlen=bound) returns two summed losses:
    over all labels that are not IGNORED, and over those whose ids are marked in `mask` (vocab,).
    token_bytes: (vocab,) number of bytes of text that each id encodes.
    """
    losses = torch.zeros(2, dtype=torch.float64, device=device)
    text = (token_bytes > 0).to(device)
    tokens = bytes_ = 0
    for batch in batches:
        counted = batch.labels[batch.labels != IGNORED]
        tokens += counted.numel()
        bytes_ += int(token_bytes[counted].sum())
        moved = batch.to(device)
        summed = model(
            moved.tokens,
            moved.labels,
            moved.cu_seqlens,
            id_mask=text,
            max_seqlen=batch.max_seqlen,
        )
        losses += torch.stack(summed).double()
    sums = torch.cat([losses, losses.new_tensor([tokens, bytes_])])
    if group is not None:
        dist.all_reduce(sums, group=group)
    loss_sum, text_loss_sum, targets, text_bytes = sums.tolist()
    bits_per_byte = text_loss_sum / math.log(2) / max(1.0, text_bytes)
    return Score(loss_sum / targets, bits_per_byte, int(targets))
