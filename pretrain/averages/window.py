"""Chooses how many of the last checkpoints of a run to average, by held-out loss.

The loss of each window is computed on one half of the held-out samples, and the gain of the best
window on the other half, because the lowest of several losses is lower than it is on other text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from conf.errors import InputError
from data_pipeline.sampling.batches import Batch, held_out_batches, held_out_samples
from data_pipeline.store.manifest import Manifest
from eval.inloop.evaluator import evaluate
from model.network import Decoder, build_meta
from pretrain.averages.members import Member

SIZES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
"""Numbers of checkpoints to compare."""


@dataclass(frozen=True)
class Window:
    """The last `size` checkpoints, with the loss of their average on both halves of the samples."""

    size: int
    chosen_by: float
    judged_by: float


@dataclass(frozen=True)
class Choice:
    """The compared windows, the first of which is the newest checkpoint alone."""

    windows: list[Window]

    @property
    def best(self) -> Window:
        """Returns the window with the lowest loss, or the newest checkpoint if none is better.

        A window is better if its loss is lower on both halves.
        """
        alone, best = self.windows[0], min(self.windows, key=lambda window: window.chosen_by)
        return best if best.judged_by < alone.judged_by else alone

    def sentence(self) -> str:
        """Returns how much the average helps, or that it does not."""
        alone, best = self.windows[0], self.best
        tried = ", ".join(str(window.size) for window in self.windows[1:])
        if best.size == 1:
            lowest = min(self.windows[1:], key=lambda window: window.chosen_by)
            return (
                f"no average of the last {tried} checkpoints has a lower loss than the newest "
                "checkpoint on both halves of the held-out samples: "
                f"{lowest.chosen_by:.4f} and {lowest.judged_by:.4f} against "
                f"{alone.chosen_by:.4f} and {alone.judged_by:.4f}"
            )
        gain = alone.judged_by - best.judged_by
        return (
            f"the average of the last {best.size} checkpoints lowers the held-out loss by "
            f"{gain:.4f}, from {alone.judged_by:.4f} to {best.judged_by:.4f}, on samples that were "
            "not used to choose it"
        )


class HeldOut:
    """Computes the held-out loss of weights, in float32 and in one process."""

    def __init__(
        self, member: Member, manifest: Manifest, tokens: int, device: torch.device
    ) -> None:
        stage = member.plan.at(max(0, member.step - 1))
        self.device = device
        self.token_bytes = torch.from_numpy(manifest.token_bytes().astype("int64"))
        rows = max(1, 8192 // stage.seq_len)
        self.halves: tuple[list[Batch], list[Batch]] = ([], [])
        for source in manifest.source_tokens("held_out"):
            count = held_out_samples(manifest, source, stage.seq_len, tokens)
            if count < 2:
                raise InputError(
                    f"tokens={tokens}: the held-out split of source '{source}' has fewer than two "
                    f"sequences of {stage.seq_len} tokens. Raise tokens, or give steps=[...]."
                )
            for half, part in zip(
                self.halves, (range(count // 2), range(count // 2, count)), strict=True
            ):
                read = held_out_batches(manifest, source, stage.seq_len, rows, tokens, part)
                half += [batch.joined() if stage.joins_documents else batch for batch in read]
        if not self.halves[0]:
            raise InputError(
                f"steps=auto: {manifest.folder} has no held-out split, by which checkpoints are "
                "compared. Give steps=[...]."
            )
        self.model: Decoder = build_meta(member.network).to_empty(device=device)
        self.model.tie()

    @torch.no_grad()
    def losses(self, weights: Iterable[tuple[str, Tensor]]) -> tuple[float, float]:
        """Returns the loss of a model on both halves of the samples."""
        parameters = dict(self.model.named_parameters())
        for name, value in weights:
            if name in parameters:  # a tied head is stored twice
                parameters[name].copy_(value)
        first, second = (
            evaluate(self.model, half, self.token_bytes, self.device).loss for half in self.halves
        )
        return first, second


def choose(
    members: Sequence[Member],
    average_of: Callable[[Sequence[Member]], Iterable[tuple[str, Tensor]]],
    held_out: HeldOut,
) -> Choice:
    """Returns the losses of the windows that end with the last member."""
    sizes = sorted({*(size for size in SIZES if size < len(members)), len(members)})
    return Choice([Window(size, *held_out.losses(average_of(members[-size:]))) for size in sizes])
