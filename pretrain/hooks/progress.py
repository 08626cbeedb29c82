"""Shows progress on the terminal, on rank 0 only."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from conf.text import format_duration
from pretrain.hooks import Hook, Order, TrainerView

LOG_SECONDS = 10.0


class ProgressLine(Hook):
    """Updates a progress bar on a terminal, or prints a line every few seconds to a log file."""

    order = Order.RECORD

    def __init__(self) -> None:
        self.console = Console()
        self.bar: Progress | None = None
        self.printed_at = 0.0

    def on_start(self, trainer: TrainerView) -> None:
        """Prints a description of the run, and opens the bar."""
        self.total = trainer.plan.total_steps
        self.total_tokens = trainer.plan.total_tokens
        self.console.print(trainer.describe(), highlight=False, soft_wrap=True)
        if self.console.is_terminal:
            self.bar = Progress(
                TextColumn("{task.description}"), BarColumn(bar_width=None), console=self.console
            )
            self.bar.start()
            self.task = self.bar.add_task("", total=self.total, completed=trainer.step)

    def on_record(self, record: Mapping[str, Any]) -> None:
        """Shows the latest train record, and prints scores and the start of a stage above it."""
        step = record["step"]
        if record["kind"] == "train":
            line = self._line(record)
            if self.bar is not None:
                self.bar.update(self.task, completed=step, description=line)
            elif time.monotonic() - self.printed_at > LOG_SECONDS or step == self.total:
                self.printed_at = time.monotonic()
                self.console.print(line, highlight=False, soft_wrap=True)
        elif record["kind"] == "validation":
            parts = [
                f"{name} {score['loss']:.4f} ({score['bits_per_byte']:.3f} bits/byte)"
                for name, score in record["sources"].items()
            ]
            average = f" (average {record['ema']['loss']:.4f})" if "ema" in record else ""
            text = f"step {step}  validation loss {record['loss']:.4f}{average}   "
            text += "   ".join(parts)
            self.console.print(text, highlight=False, soft_wrap=True)
        elif record["kind"] == "eval":
            for task, scores in record["tasks"].items():
                numbers = "   ".join(
                    f"{name} {value:.4g}"
                    for name, value in scores.items()
                    if isinstance(value, int | float)
                )
                self.console.print(
                    f"step {step}  {task}: {numbers}", highlight=False, soft_wrap=True
                )
        elif record["event"] == "stage":
            text = f"step {step}  stage {record['stage']}: sequence length {record['seq_len']}"
            self.console.print(text, highlight=False, soft_wrap=True)

    def on_end(self, trainer: TrainerView) -> None:
        """Closes the bar."""
        if self.bar is not None:
            self.bar.stop()

    def _line(self, record: Mapping[str, Any]) -> str:
        left = (self.total_tokens - record["tokens"]) / record["tokens_per_second"]
        return (
            f"step {record['step']}/{self.total}  loss {record['loss']:.4f}  "
            f"{record['tokens_per_second']:,.0f} tokens/s  MFU {record['mfu']:.1%}  "
            f"lr {record['learning_rate']:.2e}  ETA {format_duration(left)}"
        )
