"""Speeds, memory and launch times measured on a GPU, which narrow the range of a plan."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from conf.errors import InputError
from launch.plan.cluster import ClusterConfig
from launch.plan.speed import Step, StepTime, step_time
from model.config import ModelConfig
from model.flops import flops_per_token
from pretrain.config import ParallelConfig

MEASURED_SPREAD = 0.05
"""Half-width of the range of a plan that rests on a measurement, as a fraction."""
KEYS = {"model", "seq_len", "precision", "batch_tokens", "tokens_per_second"}
OTHER_KEYS = {
    "memory": {"checkpointing", "compiled", "activation_ratio"},
    "launches": {"precision", "layer_seconds"},
}
"""Keys of the entries of the lists that a file may have in addition to `runs`."""


@dataclass(frozen=True)
class Calibration:
    """Measurements of one GPU; the file of `read` has the same keys, and only `runs` is required.

    Attributes:
        runs: Training speeds: {"model": {keys of the model's shape}, "seq_len": ..., "precision":
            ..., "batch_tokens": ..., "tokens_per_second": ...}. The computation in the typical time
            of a plan is scaled by the ratio of the measured to the planned time of a run: the one
            that has the same precision and the closest FLOPs per token.
        memory: Ratios of measured to planned bytes of activations and loss: {"checkpointing": ...,
            "compiled": ..., "activation_ratio": ...}. The largest of each kind is used.
        launches: Seconds of the host for the kernels of one layer, forward and backward:
            {"precision": ..., "layer_seconds": ...}. A step takes at least that long per layer and
            micro-batch.
    """

    runs: list[dict[str, Any]]
    memory: list[dict[str, Any]] = field(default_factory=list)
    launches: list[dict[str, Any]] = field(default_factory=list)

    def activation_ratios(self, compiled: bool) -> dict[str, float]:
        """Returns the ratio by which to scale planned activations, per kind of checkpointing."""
        ratios: dict[str, float] = {}
        for found in self.memory:
            if found["compiled"] == compiled:
                mode = found["checkpointing"]
                ratios[mode] = max(found["activation_ratio"], ratios.get(mode, 0.0))
        return ratios

    def launch_seconds(self, step: Step) -> float:
        """Returns the host's seconds for the launches of a step; 0 if they were not measured."""
        layer = [
            found["layer_seconds"]
            for found in self.launches
            if found["precision"] == step.precision
        ]
        return max(layer, default=0.0) * step.model.num_layers * step.deal.micro_batches

    def apply(self, step: Step, cluster: ClusterConfig) -> tuple[StepTime, StepTime]:
        """Returns calibrated times of a step, with MEASURED_SPREAD less and more computation."""
        wanted = flops_per_token(step.model, step.seq_len)
        same = [run for run in self.runs if run["precision"] == step.precision]
        if not same:
            raise InputError(
                f"calibration: the file has no run with precision={step.precision}. Measure one "
                "with benchmarks/gpu_training.py."
            )
        shapes = [(ModelConfig(**run["model"]), run) for run in same]
        shape, run = min(
            shapes, key=lambda pair: abs(flops_per_token(pair[0], pair[1]["seq_len"]) - wanted)
        )
        tokens = run["batch_tokens"]
        alone = ParallelConfig(dp_shard=1, micro_batch_tokens=tokens)
        measured_step = Step(shape, run["seq_len"], tokens, step.precision, alone, step.state_bytes)
        planned = step_time(measured_step, cluster, False)
        factor = tokens / run["tokens_per_second"] / planned.total
        typical = step_time(step, cluster, False)
        host = self.launch_seconds(step)
        best, worst = (
            typical.scaled(factor * (1 + e)).with_launches(host)
            for e in (-MEASURED_SPREAD, MEASURED_SPREAD)
        )
        return best, worst

    @classmethod
    def read(cls, path: Path) -> Calibration:
        """Reads a calibration file. Raises InputError if it is missing or not valid."""
        if not path.is_file():
            raise InputError(
                f"calibration={path}: no such file. Give a file that benchmarks/gpu_session.py "
                "wrote."
            )
        try:
            found = json.loads(path.read_text())
            runs = found["runs"]
            lists = {key: found.get(key, []) for key in OTHER_KEYS}
            is_valid = all(run.keys() >= KEYS and ModelConfig(**run["model"]) for run in runs)
            is_valid &= all(
                row.keys() >= keys for key, keys in OTHER_KEYS.items() for row in lists[key]
            )
        except (ValueError, KeyError, TypeError, AttributeError):
            is_valid = False
        if not is_valid:
            raise InputError(
                f"calibration={path}: expected a list 'runs' of entries with the keys "
                f"{', '.join(sorted(KEYS))}. Give a file that benchmarks/gpu_session.py wrote."
            )
        return cls(runs, **lists)
