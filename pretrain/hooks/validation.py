"""Measures the held-out loss and bits per byte of each source during training, on all ranks."""

from __future__ import annotations

from typing import Any

import torch

from data_pipeline.sampling.batches import (
    held_out_batches,
    held_out_samples,
    mean_document_tokens,
)
from data_pipeline.sampling.dealing import Deal
from data_pipeline.sampling.padding import pad_batches
from eval.inloop.evaluator import evaluate
from pretrain.config import ValidationConfig
from pretrain.hooks import Hook, Order, TrainerView
from pretrain.hooks.ema import Ema
from pretrain.parallel import reshard_parameters


class Validation(Hook):
    """Validates before the first step, at an interval, and after the last step.

    A branch thus begins with the held-out loss of its trunk at the fork, measured with the sequence
    length and the network of the trunk's stage.

    Samples are split over the data-parallel ranks like those of a training step. Blank samples pad
    uneven shares, because every rank must take part in every all-gather of the weights. If the run
    keeps an average of the weights, the average is validated on the same samples.
    """

    order = Order.EVALUATE

    def __init__(self, config: ValidationConfig, ema: Ema | None = None) -> None:
        self.config, self.ema = config, ema

    def on_start(self, trainer: TrainerView) -> None:
        """Reads the number of bytes per token, and validates before the first step of the run."""
        self.token_bytes = torch.from_numpy(trainer.manifest.token_bytes().astype("int64"))
        if trainer.step == 0 or trainer.at_fork:
            self._validate(trainer)

    def after_step(self, trainer: TrainerView) -> None:
        """Validates if the step is a multiple of the interval or the last one."""
        every = self.config.every_steps
        if trainer.step == trainer.plan.total_steps or (every and trainer.step % every == 0):
            self._validate(trainer)

    def _validate(self, trainer: TrainerView) -> None:
        if not trainer.manifest.source_tokens("held_out"):
            return  # imported shards may have no held-out split
        record = {"kind": "validation", **self._scores(trainer)}
        if self.ema is not None and self.ema.has_entries:
            with self.ema.in_model():
                record["ema"] = self._scores(trainer)
        trainer.publish(record)

    def _scores(self, trainer: TrainerView) -> dict[str, Any]:
        """Returns the mean loss, and the scores of each source."""
        manifest = trainer.manifest
        stage = trainer.plan.at(max(0, trainer.step - 1))
        seq_len = stage.seq_len
        most_rows = max(1, trainer.config.parallel.micro_batch_tokens // seq_len)
        group = trainer.layout.dp.get_group()
        scores: dict[str, dict[str, Any]] = {}
        for source in manifest.source_tokens("held_out"):
            count = held_out_samples(manifest, source, seq_len, self.config.tokens)
            deal = Deal.of(count, trainer.dp_size, most_rows)
            real = held_out_batches(
                manifest,
                source,
                seq_len,
                deal.rows,
                self.config.tokens,
                deal.share(trainer.dp_rank),
            )
            length = mean_document_tokens(manifest, {source: 1.0}, "held_out")
            mine = pad_batches(real, deal, seq_len, 1, length)
            if stage.joins_documents:
                mine = [batch.joined() for batch in mine]
            score = evaluate(trainer.model, mine, self.token_bytes, trainer.processes.device, group)
            scores[source] = {
                "loss": score.loss,
                "bits_per_byte": score.bits_per_byte,
                "tokens": score.tokens,
            }
        reshard_parameters(trainer.model)
        tokens = sum(score["tokens"] for score in scores.values())
        loss = sum(score["loss"] * score["tokens"] for score in scores.values()) / tokens
        return {"loss": loss, "sources": scores}
