"""What a tuning run tells while it runs: metrics.jsonl and a line on the terminal."""

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

# The names of transformers and trl, and ours.
TRAIN_KEYS = {
    "loss": "loss",
    "grad_norm": "grad_norm",
    "learning_rate": "learning_rate",
    "num_input_tokens_seen": "tokens",
    "epoch": "epoch",
    "rewards/margins": "reward_margin",
    "rewards/accuracies": "reward_accuracy",
}


class LastStep(TrainerCallback):
    """Has the last step logged, wherever it falls; for all processes, as a log is a collective."""

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Asks for a log."""
        control.should_log |= state.global_step >= state.max_steps


class MetricsFile(TrainerCallback):
    """Appends a line to `path` at each log: loss in nats per answer token, over the steps since
    the line before; tokens count prompts too."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.started = self.logged = time.perf_counter()
        self.tokens = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Writes the start event."""
        self.started = self.logged = time.perf_counter()
        self._write({"kind": "event", "event": "start", "step": 0, "steps": state.max_steps})

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        """Writes a train line."""
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
    """A live bar on a terminal; in a log file a line at each log."""

    def __init__(self) -> None:
        self.console = Console()
        self.bar: Progress | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Opens the bar."""
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
        """Moves the bar."""
        if self.bar is not None:
            self.bar.update(self.task, completed=state.global_step)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        """Shows the loss."""
        if "loss" not in logs:
            return
        text = f"tuning  loss {float(logs['loss']):.3f}"
        if self.bar is not None:
            self.bar.update(self.task, description=text)
        else:
            line = f"{text}  step {state.global_step}/{state.max_steps}"
            self.console.print(line, highlight=False, soft_wrap=True)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Closes the bar."""
        if self.bar is not None:
            self.bar.stop()
