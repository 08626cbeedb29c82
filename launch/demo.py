"""`python -m launch demo`: the whole path on this machine, with a plain picture of progress."""

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
    """Runs the pipeline and prints what came out; exits with 1 where a step failed."""
    console = Console()
    pipeline = Pipeline(config)
    picture = Picture(config, console)
    try:
        with picture:
            for outcome in pipeline.run(picture.on_line):
                picture.on_outcome(outcome)
    except StepFailed as error:
        console.print(f"[red]failed[/red] {error}", highlight=False, soft_wrap=True)
        sys.exit(EXIT_FAILED)
    if picture.all_skipped:
        console.print("All is done already; nothing was run.")
    summarise(config, console)


class Picture:
    """On a terminal a live list of the steps, elsewhere a line as each begins, talks and ends."""

    def __init__(self, config: PipelineConfig, console: Console) -> None:
        self.steps = config.steps
        self.console = console
        self.outcomes: dict[str, Outcome] = {}
        self.said = ""
        self.announced = ""
        self.spinner = Spinner("dots")
        self.live = Live(console=console, get_renderable=self._render, refresh_per_second=8)

    def __enter__(self) -> Picture:
        if self.console.is_terminal:
            self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.console.is_terminal:
            self.live.stop()

    @property
    def all_skipped(self) -> bool:
        """Whether no step had to run."""
        return all(outcome.skipped for outcome in self.outcomes.values())

    def on_line(self, name: str, line: str) -> None:
        """A step printed a line."""
        if not line.strip():
            return
        self.said = line.strip()
        if not self.console.is_terminal:
            if self.announced != name:
                self.announced = name
                number = list(self.steps).index(name) + 1
                print(f"[{number}/{len(self.steps)}] {self.steps[name].title}", flush=True)
            print(f"      {line}", flush=True)

    def on_outcome(self, outcome: Outcome) -> None:
        """A step is done."""
        self.outcomes[outcome.name] = outcome
        self.said = ""
        if not self.console.is_terminal:
            title = self.steps[outcome.name].title
            how = "was done before" if outcome.skipped else f"done in {outcome.seconds:.0f} s"
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
        said = Text(self.said, style="dim", overflow="ellipsis", no_wrap=True)
        return Group(table, said)


def summarise(config: PipelineConfig, console: Console) -> None:
    """Prints the figures of the run and the address of its report."""
    out = Path(config.out)
    losses = [r["loss"] for r in records(out / "metrics.jsonl") if r["kind"] == "validation"]
    if losses:
        console.print(
            f"\nvalidation loss {losses[0]:.3f} -> {losses[-1]:.3f} nats per token", highlight=False
        )
    report = list(config.steps.values())[-1].makes
    console.print(f"report: {Path(report).resolve().as_uri()}", highlight=False, soft_wrap=True)


def records(path: Path) -> list[dict[str, Any]]:
    """Lines of a jsonl file."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
