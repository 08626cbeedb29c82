"""Held-out loss and bits per byte of each source while the model trains; all ranks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from conf.errors import InputError
from data_pipeline.sampling.batches import Batch, held_out_batches
from eval.inloop import evaluate
from model.loss import IGNORED
from pretrain.config import ValidationConfig
from pretrain.hooks import Hook
from pretrain.parallel import drop_gathered

if TYPE_CHECKING:
    from pretrain.trainer import Trainer


class Validation(Hook):
    """Before the first step, at an interval, and after the last step.

    The batches are dealt over the data-parallel ranks; where they do not come out even, a rank
    runs one without targets, since every rank must take part in every gathering of weights.
    """

    def __init__(self, config: ValidationConfig) -> None:
        self.config = config

    def on_start(self, trainer: Trainer) -> None:
        """Scores a fresh model."""
        self.token_bytes = torch.from_numpy(trainer.manifest.token_bytes().astype("int64"))
        if trainer.step == 0:
            self._validate(trainer)

    def after_step(self, trainer: Trainer) -> None:
        """Scores at the interval and at the end."""
        every = self.config.every_steps
        if trainer.step == trainer.plan.total_steps or (every and trainer.step % every == 0):
            self._validate(trainer)

    def _validate(self, trainer: Trainer) -> None:
        if not trainer.manifest.source_tokens("held_out"):
            return  # nothing was held out: imported shards may come without
        seq_len = trainer.plan.at(max(0, trainer.step - 1)).seq_len
        micro = trainer.config.parallel.micro_batch_tokens // seq_len
        group = trainer.layout.dp.get_group()
        scores: dict[str, dict[str, Any]] = {}
        for source in trainer.manifest.source_tokens("held_out"):
            batches = list(
                held_out_batches(trainer.manifest, source, seq_len, micro, self.config.tokens)
            )
            if not batches:
                raise InputError(
                    f"{trainer.config.data.folder}: the held-out split of source '{source}' is "
                    f"shorter than one sequence of {seq_len} tokens: hold more out."
                )
            mine = deal(batches, trainer.dp_rank, trainer.dp_size)
            score = evaluate(trainer.model, mine, self.token_bytes, trainer.processes.device, group)
            scores[source] = {
                "loss": score.loss,
                "bits_per_byte": score.bits_per_byte,
                "tokens": score.tokens,
            }
        drop_gathered(trainer.model)
        tokens = sum(score["tokens"] for score in scores.values())
        loss = sum(score["loss"] * score["tokens"] for score in scores.values()) / tokens
        trainer.publish({"kind": "validation", "loss": loss, "sources": scores})


def deal(batches: list[Batch], rank: int, ranks: int) -> list[Batch]:
    """Every rank's share, all of one length; the missing ones have no targets."""
    even = -(-len(batches) // ranks)
    mine = batches[rank::ranks]
    while len(mine) < even:
        blank = batches[0]
        labels = torch.full_like(blank.labels, IGNORED)
        mine.append(Batch(blank.tokens, labels, blank.cu_seqlens, blank.samples))
    return mine
