"""`trl`'s trainer with the loss on a CPU taken at the answers' positions only."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from trl import SFTTrainer

from finetune.tokens import IGNORED


class AnswerTrainer(SFTTrainer):
    """On a GPU `trl` projects onto the vocabulary only those positions whose next token is learned
    from. On a CPU it projects all of them, several times; a small model then spends half of its
    time on prompts' logits that the loss ignores."""

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Cross-entropy in nats, summed over the answers' tokens and divided by
        `num_items_in_batch`, their number in the step over all processes."""
        if not self.args.use_cpu or return_outputs:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        labels = inputs.pop("labels")[:, 1:]
        columns = (labels != IGNORED).any(dim=0).nonzero().squeeze(1)
        logits = model(**inputs, logits_to_keep=columns, use_cache=False).logits
        loss = F.cross_entropy(
            logits.flatten(0, 1).float(),
            labels[:, columns].flatten(),
            ignore_index=IGNORED,
            reduction="sum",
        )
        if num_items_in_batch is None:
            num_items_in_batch = (labels != IGNORED).sum()
        # Gradients are averaged over processes where the sum is wanted.
        return (
            loss * self.accelerator.num_processes / torch.as_tensor(num_items_in_batch).clamp(min=1)
        )
