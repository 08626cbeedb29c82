"""`trl`'s trainer for supervised tuning, with a faster loss on CPUs and exact validation."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from trl import SFTTrainer

from finetune.arguments import batch_order
from finetune.batch_order import BatchOrder
from finetune.config import SftConfig
from finetune.tokens import IGNORED


class AnswerTrainer(SFTTrainer):
    """An SFT trainer that reads rows in the order of `BatchOrder` and validates exactly.

    On a GPU `trl` projects only those positions onto the vocabulary whose next token is trained on.
    On a CPU it projects all positions several times, and a small model then spends half of its time
    on the logits of prompts, which the loss ignores. This trainer avoids that.

    num_skipped: number of conversations whose first answer begins beyond max_seq_len.
    """

    num_skipped = 0

    def __init__(self, config: SftConfig, **parts: Any) -> None:
        super().__init__(**parts)
        self.config = config

    def _get_train_sampler(self, train_dataset: Any = None) -> BatchOrder:
        data: Any = self.train_dataset
        return batch_order(self, self.config, [len(ids) for ids in data["input_ids"]])

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Returns the cross-entropy in nats per answer token of the validation data.

        The mean is over the tokens of all answers, whatever the batches and processes are.
        """
        data: Any = self.eval_dataset
        rank, processes = self.accelerator.process_index, self.accelerator.num_processes
        shard = data.select(range(rank, len(data), processes))
        total = torch.zeros(2, dtype=torch.float64, device=self.accelerator.device)
        model: Any = self.model
        model.eval()
        for batch in shard.iter(self.args.eval_batch_size):
            rows = [dict(zip(batch, row, strict=True)) for row in zip(*batch.values(), strict=True)]
            inputs = self._prepare_inputs(self.data_collator(rows))
            labels = inputs.pop("labels")[:, 1:]
            with torch.no_grad(), self.compute_loss_context_manager():
                logits = model(**inputs, use_cache=False).logits[:, :-1].float()
            learned = labels != IGNORED
            loss = F.cross_entropy(logits[learned], labels[learned], reduction="sum")
            total += torch.stack([loss.double(), learned.sum().double()])
        losses, count = self.accelerator.reduce(total, "sum").tolist()
        metrics = {"eval_loss": losses / max(count, 1)}
        self.log(metrics)
        handler = self.callback_handler
        self.control = handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Returns the summed cross-entropy of answer tokens, divided by their number in the step.

        The loss is in nats. `num_items_in_batch` is the number of answer tokens in the step over
        all processes.
        """
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
        # Gradients are averaged over processes, but their sum is needed.
        return (
            loss * self.accelerator.num_processes / torch.as_tensor(num_items_in_batch).clamp(min=1)
        )
