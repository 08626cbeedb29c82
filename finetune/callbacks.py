"""Progress and metrics callbacks of a tuning run: metrics.jsonl and a line on the terminal."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)
from transformers import TrainerCallback

from finetune.checkpoints import PRECISION

TRAIN_KEYS = {
    "loss": "loss",
    "grad_norm": "grad_norm",
    "learning_rate": "learning_rate",
    "num_input_tokens_seen": "tokens",
    "epoch": "epoch",
    "rewards/margins": "reward_margin",
    "rewards/accuracies": "reward_accuracy",
}
"""Training metrics: their names in transformers or trl, and those in metrics.jsonl."""

VALIDATION_KEYS = {
    "eval_loss": "loss",
    "eval_rewards/margins": "reward_margin",
    "eval_rewards/accuracies": "reward_accuracy",
}
"""Validation metrics: their names in transformers or trl, and those in metrics.jsonl."""


class LogLastStep(TrainerCallback):
    """Logs the last step and each step with a checkpoint.

    A resumed run therefore logs the same values as an uninterrupted one. The last step is not saved
    as a checkpoint, because the result is saved right after it. Every process has this callback,
    because a log is a collective operation.
    """

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Requests a log at each checkpoint and at the last step, which makes no checkpoint."""
        last = state.global_step >= state.max_steps
        control.should_save &= not last
        control.should_log |= last or control.should_save


class MarkSaved(TrainerCallback):
    """Marks a checkpoint when this process has written its part of it.

    Every process has this callback. If the mark of a process is missing, the run was killed while
    writing the checkpoint, which is then incomplete.
    """

    def __init__(self, rank: int, processes: int) -> None:
        self.mark = f"saved-{rank}-of-{processes}"

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Writes the precision, which a resumed run keeps, and then the mark."""
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        if args.process_index == 0:
            (folder / PRECISION).write_text("bf16" if args.bf16 else "fp32")
        (folder / self.mark).touch()


class MetricsFile(TrainerCallback):
    """Appends a line to `path` at each log.

    The loss is in nats per answer token, averaged over the steps since the previous line. The
    token count includes prompts.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.started = self.logged = time.perf_counter()
        self.tokens = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Writes the start event; a resumed run first drops the lines of later steps."""
        self.started = self.logged = time.perf_counter()
        self.tokens = int(state.num_input_tokens_seen)
        step = state.global_step
        if self.path.is_file():
            lines = self.path.read_text().split("\n")[:-1]  # the last one may be truncated
            kept = [line for line in lines if step and json.loads(line)["step"] <= step]
            self.path.write_text("".join(f"{line}\n" for line in kept))
        event = "resume" if step else "start"
        self._write({"kind": "event", "event": event, "step": step, "steps": state.max_steps})

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        """Writes a training or a validation line, depending on which metrics are logged."""
        if "eval_loss" in logs:
            found = {ours: logs[name] for name, ours in VALIDATION_KEYS.items() if name in logs}
            self._write({"kind": "validation", "step": state.global_step, **found})
        if "loss" not in logs:
            return
        now = time.perf_counter()
        record = {ours: float(logs[name]) for name, ours in TRAIN_KEYS.items() if name in logs}
        tokens, seconds = int(record["tokens"]), now - self.logged
        rate = (tokens - self.tokens) / seconds
        self.logged, self.tokens = now, tokens
        self._write(
            {
                "kind": "train",
                "step": state.global_step,
                **record,
                "tokens": tokens,
                "tokens_per_second": rate,
            }
        )

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Writes the finish event."""
        seconds = time.perf_counter() - self.started
        self._write(
            {"kind": "event", "event": "finish", "step": state.global_step, "seconds": seconds}
        )

    def _write(self, record: dict[str, Any]) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps(record | {"time": time.time()}) + "\n")


class ProgressLine(TrainerCallback):
    """A live progress bar on a terminal; in a log file, one line per log."""

    def __init__(self) -> None:
        self.console = Console()
        self.bar: Progress | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Starts the bar."""
        if self.console.is_terminal:
            self.bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                console=self.console,
            )
            self.bar.start()
            self.task = self.bar.add_task("tuning", total=state.max_steps)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Advances the bar."""
        if self.bar is not None:
            self.bar.update(self.task, completed=state.global_step)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        """Shows the loss."""
        if "loss" in logs:
            text = f"tuning  loss {float(logs['loss']):.3f}"
        elif "eval_loss" in logs:
            text = f"tuning  validation loss {float(logs['eval_loss']):.3f}"
        else:
            return
        if self.bar is not None:
            self.bar.update(self.task, description=text)
        else:
            line = f"{text}  step {state.global_step}/{state.max_steps}"
            self.console.print(line, highlight=False, soft_wrap=True)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Stops the bar."""
        if self.bar is not None:
            self.bar.stop()
