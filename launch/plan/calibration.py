"""Measured speeds of a GPU, which narrow the range of a plan."""

from __future__ import annotations

import json
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Calibration:
    """Training speeds that were measured on one GPU.

    The file holds {"gpu": ..., "runs": [{"model": {keys of the model's shape}, "seq_len": ...,
    "precision": ..., "batch_tokens": ..., "tokens_per_second": ...}]}. The computation in the
    typical time of a plan is scaled by the ratio of the measured to the planned time of a run: the
    one that has the same precision and the closest FLOPs per token.
    """

    runs: list[dict[str, Any]]

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
        best, worst = (
            typical.scaled(factor * (1 + e)) for e in (-MEASURED_SPREAD, MEASURED_SPREAD)
        )
        return best, worst

    @classmethod
    def read(cls, path: Path) -> Calibration:
        """Reads a calibration file. Raises InputError if it is missing or not valid."""
        if not path.is_file():
            raise InputError(
                f"calibration={path}: no such file. Give a file that benchmarks/gpu_training.py "
                "wrote."
            )
        try:
            runs = json.loads(path.read_text())["runs"]
            is_valid = all(run.keys() >= KEYS and ModelConfig(**run["model"]) for run in runs)
        except (ValueError, KeyError, TypeError, AttributeError):
            is_valid = False
        if not is_valid:
            raise InputError(
                f"calibration={path}: expected a list 'runs' of entries with the keys "
                f"{', '.join(sorted(KEYS))}. Give a file that benchmarks/gpu_training.py wrote."
            )
        return cls(runs)
