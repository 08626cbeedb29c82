"""`python -m launch demo`: runs all stages on this machine and shows their progress."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from conf.errors import EXIT_FAILED
from launch.pipeline import Outcome, Pipeline, PipelineConfig, StepFailed


def demo(config: PipelineConfig) -> None:
    """Runs the pipeline and prints its results; exits with 1 if a step failed."""
    console = Console()
    pipeline = Pipeline(config)
    display = ProgressDisplay(config, console)
    try:
        with display:
            for outcome in pipeline.run(display.on_line):
                display.on_outcome(outcome)
    except StepFailed as error:
        console.print(f"[red]failed[/red] {error}", highlight=False, soft_wrap=True)
        sys.exit(EXIT_FAILED)
    if display.all_skipped:
        console.print("All steps were already done, so nothing was run.")
    print_summary(config, console)


class ProgressDisplay:
    """A live list of the steps on a terminal, and plain lines of their output elsewhere."""

    def __init__(self, config: PipelineConfig, console: Console) -> None:
        self.steps = config.steps
        self.console = console
        self.outcomes: dict[str, Outcome] = {}
        self.last_line = ""
        self.announced = ""
        self.spinner = Spinner("dots")
        self.live = Live(console=console, get_renderable=self._render, refresh_per_second=8)

    def __enter__(self) -> ProgressDisplay:
        if self.console.is_terminal:
            self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.console.is_terminal:
            self.live.stop()

    @property
    def all_skipped(self) -> bool:
        """Returns whether no step had to run."""
        return all(outcome.skipped for outcome in self.outcomes.values())

    def on_line(self, name: str, line: str) -> None:
        """Shows a line that a step printed."""
        if not line.strip():
            return
        self.last_line = line.strip()
        if not self.console.is_terminal:
            if self.announced != name:
                self.announced = name
                number = list(self.steps).index(name) + 1
                print(f"[{number}/{len(self.steps)}] {self.steps[name].title}", flush=True)
            print(f"      {line}", flush=True)

    def on_outcome(self, outcome: Outcome) -> None:
        """Shows that a step is done."""
        self.outcomes[outcome.name] = outcome
        self.last_line = ""
        if not self.console.is_terminal:
            title = self.steps[outcome.name].title
            how = "done before" if outcome.skipped else f"done in {outcome.seconds:.0f} s"
            print(f"[{len(self.outcomes)}/{len(self.steps)}] {title}: {how}", flush=True)

    def _render(self) -> Group:
        table = Table.grid(padding=(0, 1))
        current = next((name for name in self.steps if name not in self.outcomes), None)
        for name, step in self.steps.items():
            outcome = self.outcomes.get(name)
            if outcome:
                time = Text("done before" if outcome.skipped else f"{outcome.seconds:.0f} s")
                table.add_row(Text("✓", style="green"), step.title, time)
            elif name == current:
                table.add_row(self.spinner, Text(step.title, style="bold"), "")
            else:
                table.add_row(" ", Text(step.title, style="dim"), "")
        last_line = Text(self.last_line, style="dim", overflow="ellipsis", no_wrap=True)
        return Group(table, last_line)


def print_summary(config: PipelineConfig, console: Console) -> None:
    """Prints the validation loss of the run and the address of its report."""
    out = Path(config.out)
    losses = [r["loss"] for r in read_records(out / "metrics.jsonl") if r["kind"] == "validation"]
    if losses:
        console.print(
            f"\nvalidation loss {losses[0]:.3f} -> {losses[-1]:.3f} nats per token", highlight=False
        )
    report = list(config.steps.values())[-1].makes
    console.print(f"report: {Path(report).resolve().as_uri()}", highlight=False, soft_wrap=True)


def read_records(path: Path) -> list[dict[str, Any]]:
    """Returns the rows of a jsonl file, or [] if it does not exist."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
