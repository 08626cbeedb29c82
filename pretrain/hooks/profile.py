"""Writes traces and memory snapshots of chosen steps to `profile/` of the run folder."""

from __future__ import annotations

from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from pretrain.config import ProfileConfig
from pretrain.hooks import Hook, Order, TrainerView


class Profile(Hook):
    """Writes one Chrome trace for each sequence of consecutive steps in `config.steps`.

    With `memory` on CUDA, it also writes a snapshot for pytorch.org/memory_viz. Steps count from 1,
    as in metrics.jsonl. Only profiled steps become slower.
    """

    order = Order.TIME

    def __init__(self, run_dir: Path, config: ProfileConfig, rank: int) -> None:
        self.folder = run_dir / "profile"
        self.steps = set(config.steps) if rank in config.ranks else set()
        self.memory = config.memory
        self.rank = rank
        self.profiler: profile | None = None

    def before_step(self, trainer: TrainerView) -> None:
        """Starts the profiler at the first of consecutive steps, and labels each step."""
        step = trainer.step + 1
        if step not in self.steps:
            return
        if self.profiler is None:
            self.first = step
            self.folder.mkdir(parents=True, exist_ok=True)
            if self.memory:
                torch.cuda.memory._record_memory_history()
            activities = [ProfilerActivity.CPU]
            if trainer.processes.device.type == "cuda":
                activities.append(ProfilerActivity.CUDA)
            self.profiler = profile(activities=activities, record_shapes=True)
            self.profiler.start()
        self.label = record_function(f"train step {step}")
        self.label.__enter__()

    def after_step(self, trainer: TrainerView) -> None:
        """Stops the profiler after the last of consecutive steps, and writes the files."""
        step = trainer.step
        if self.profiler is None or step not in self.steps:
            return
        self.label.__exit__(None, None, None)
        if step + 1 not in self.steps:
            self._write(step)

    def on_end(self, trainer: TrainerView) -> None:
        """Writes an unfinished trace if the run stops early."""
        if self.profiler is not None:
            self._write(trainer.step)

    def _write(self, last: int) -> None:
        assert self.profiler is not None
        name = f"steps_{self.first}-{last}_rank_{self.rank}"
        self.profiler.stop()
        self.profiler.export_chrome_trace(str(self.folder / f"trace_{name}.json.gz"))
        self.profiler = None
        if self.memory:
            torch.cuda.memory._dump_snapshot(str(self.folder / f"memory_{name}.pickle"))
            torch.cuda.memory._record_memory_history(enabled=None)
