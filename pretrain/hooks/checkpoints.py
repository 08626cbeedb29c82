"""Saves checkpoints when due, after the last step, and when another hook requests one.

The hook runs on all ranks.
"""

from __future__ import annotations

import queue
import sys
import time
from collections.abc import Mapping
from typing import Any

import torch.distributed as dist

from pretrain.checkpoints.files import CheckpointError
from pretrain.checkpoints.interval import Clock, best_interval
from pretrain.checkpoints.mirror import Uploader
from pretrain.checkpoints.retention import Retention
from pretrain.checkpoints.saver import Outcome, Saver
from pretrain.checkpoints.writer_process import WriterProcess
from pretrain.config import CheckpointConfig
from pretrain.hooks import Hook, Order, TrainerView, hook_tensors


class Checkpoints(Hook):
    """Starts saves, and publishes their outcomes."""

    order = Order.SAVE

    def __init__(self, config: CheckpointConfig, writer: WriterProcess) -> None:
        self.config, self.writer = config, writer
        self.clock: Clock | None = None
        self.cost_seconds = 0.0
        self.validation: tuple[int, float] | None = None
        self.saved = -1

    def on_start(self, trainer: TrainerView) -> None:
        """Opens the saver and the mirror, and starts the clock of time-based intervals."""
        config = self.config
        keep = Retention(config.keep_last, config.keep_every, config.keep_best, config.keep_steps)
        self.saver = Saver(
            trainer.checkpoints,
            trainer.processes,
            self.writer,
            keep,
            config.timeout_minutes * 60,
            config.wait_seconds,
        )
        self.copier: Uploader | None = None
        self.copied: queue.Queue[tuple[list[int], str | None]] = queue.Queue()
        if config.copy_to and trainer.processes.is_main:
            self.copier = Uploader(
                self.writer,
                trainer.checkpoints,
                config.copy_to,
                keep,
                config.timeout_minutes * 60,
                lambda steps, problem: self.copied.put((steps, problem)),
            )
            self.copier.wake()  # an earlier process may have died before it mirrored everything
        if config.every_minutes or config.interval == "auto":
            self.clock = Clock(trainer.step, time.monotonic())
        self.first_step = trainer.step + 1

    def before_optimizer_step(self, trainer: TrainerView) -> None:
        """Lets no update change the weights that a save still copies from the device."""
        self.saver.delay_update()

    def on_record(self, record: Mapping[str, Any]) -> None:
        """Keeps the last held-out loss, for `keep_best`."""
        if record["kind"] == "validation":
            self.validation = record["step"], record["loss"]

    def after_step(self, trainer: TrainerView) -> None:
        """Saves a checkpoint if one is due or requested, and publishes earlier outcomes."""
        if trainer.step == self.first_step:
            self.saver.prepare(trainer.model, trainer.optimizer, hook_tensors(trainer.hooks))
        self._report(trainer)
        last = trainer.must_save or trainer.step == trainer.plan.total_steps
        trainer.must_save = False
        needed = last or trainer.step in self.config.keep_steps
        lasting = needed or self._is_due(trainer)
        often = self.config.short_lived_every_steps
        if lasting or (often and trainer.step % often == 0):
            self.save(trainer, short_lived=not lasting, patient=needed)
        if needed or (self.saved == trainer.step and not self.config.asynchronous):
            self.finish(trainer, must_succeed=needed)

    def before_rewind(self, trainer: TrainerView) -> None:
        """Waits for the pending save, since the rewind may load that checkpoint."""
        self.finish(trainer)

    def on_end(self, trainer: TrainerView) -> None:
        """Waits for the pending save and for its copy in the mirror."""
        self.finish(trainer)
        if self.copier is not None:
            self.copier.wait()
        self._report(trainer)

    def on_leave(self, trainer: TrainerView) -> None:
        """Closes the saver while the process group's store still exists."""
        if hasattr(self, "saver"):  # `on_start` may have failed
            self.saver.abandon()

    def save(self, trainer: TrainerView, short_lived: bool = False, patient: bool = False) -> None:
        """Starts a save of this step unless it is already saved. All ranks must call this method.

        patient: whether to wait for an earlier save, in bounded time, instead of skipping this one.
        """
        if self.saved == trainer.step:
            return
        trainer.flush()  # the logs must contain every step that the checkpoint covers
        metadata = trainer.checkpoint_metadata()
        if short_lived:
            metadata["short_lived"] = True
        if self.validation is not None and self.validation[0] == trainer.step:
            metadata["validation_loss"] = self.validation[1]
        if patient:
            self.saver.wait()
        problem = self.saver.save(
            trainer.step, trainer.model, trainer.optimizer, metadata, hook_tensors(trainer.hooks)
        )
        if problem is not None:
            self._alarm(trainer, trainer.step, problem)
            return
        self.saved = trainer.step
        self.cost_seconds = self.saver.stall_seconds
        if self.clock is not None:
            self.clock.saved(time.monotonic())

    def finish(self, trainer: TrainerView, must_succeed: bool = False) -> None:
        """Waits for the pending save. All ranks must call this method.

        must_succeed: whether to raise CheckpointError if this step is not saved.
        """
        problem = self.saver.common_outcome()
        self._report(trainer)
        if must_succeed and (problem is not None or self.saved != trainer.step):
            is_last = trainer.step == trainer.plan.total_steps
            raise CheckpointError(
                f"{trainer.checkpoints} has no checkpoint of "
                f"{'the last step, ' if is_last else 'step '}{trainer.step}, "
                f"because saving failed ({problem or 'an earlier save hangs'}). Correct the cause "
                "and run the same command again; it resumes from the previous checkpoint."
            )

    def _is_due(self, trainer: TrainerView) -> bool:
        config, step = self.config, trainer.step
        if config.interval != "auto" and config.every_steps and step % config.every_steps == 0:
            return True
        if config.every_tokens:
            before, now = trainer.plan.tokens_at(step - 1), trainer.plan.tokens_at(step)
            if before // config.every_tokens < now // config.every_tokens:
                return True
        if self.clock is None or step != self.clock.look_at:
            return False
        answer: list[Any] = [None]
        if trainer.processes.is_main:
            due = self.clock.is_due(
                step, time.monotonic(), self._interval_seconds(self.cost_seconds)
            )
            answer = [(due, self.clock.look_at)]
        dist.broadcast_object_list(answer, src=0)
        due, self.clock.look_at = answer[0]
        return due

    def _interval_seconds(self, cost_seconds: float) -> float:
        if self.config.interval != "auto":
            return self.config.every_minutes * 60
        return best_interval(cost_seconds, self.config.mttf_hours * 3600)

    def _report(self, trainer: TrainerView) -> None:
        """Publishes the outcomes of saves and of copies to the mirror; only rank 0 has any."""
        while not self.saver.outcomes.empty():
            outcome = self.saver.outcomes.get()
            if outcome.problem is not None:
                self._alarm(trainer, outcome.step, outcome.problem)
                continue
            if self.copier is not None:
                self.copier.wake()
            record: dict[str, Any] = {
                "kind": "event",
                "event": "checkpoint",
                "path": f"step_{outcome.step}",
            }
            record |= _numbers(outcome)
            if self.config.interval == "auto":
                record["interval_seconds"] = self._interval_seconds(outcome.stall_seconds)
            trainer.publish(record)
        while not self.copied.empty():
            steps, problem = self.copied.get()
            if problem is not None:
                print(
                    f"ALARM: {self.config.copy_to} has no copy of the newest checkpoint: {problem} "
                    "Training continues, and the upload is retried after the next save.",
                    file=sys.stderr,
                    flush=True,
                )
                trainer.publish({"kind": "event", "event": "copy_failed", "cause": problem})
            for step in steps:
                trainer.publish({"kind": "event", "event": "copied", "path": f"step_{step}"})

    def _alarm(self, trainer: TrainerView, step: int, problem: str) -> None:
        """Reports a save that failed; training continues."""
        if trainer.processes.is_main:
            print(
                f"ALARM: the checkpoint of step {step} was not saved: {problem} Training continues "
                "until the next save.",
                file=sys.stderr,
                flush=True,
            )
            trainer.publish(
                {"kind": "event", "event": "checkpoint_failed", "of_step": step, "cause": problem}
            )


def _numbers(outcome: Outcome) -> dict[str, Any]:
    return {
        "held_seconds": outcome.stall_seconds,
        "seconds": outcome.seconds,
        "bytes": outcome.bytes,
        "removed": outcome.removed,
    }
