"""lm-eval tasks scored on a model while it trains, in place and without an export."""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from conf.errors import InputError
from eval.inloop.decoder_lm import DecoderLM
from eval.tasks.checked_lm import CheckedLM
from eval.tasks.forms import by_depth
from eval.tasks.load import index_tasks, load_tasks, quiet
from eval.tasks.score import score_tasks
from eval.tasks.suites import TaskSettings, select

PREFIX = "evaluation."
"""Prefix of the settings' names in error messages."""


class LimitedTaskSettings(TaskSettings, Protocol):
    """Task settings with a limit on the number of samples per task, None for all."""

    limit: int | None


class InloopLM(CheckedLM, DecoderLM):
    """A sharded decoder as an lm-eval model that checks each request first."""

    prefix = PREFIX


def training_record(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what metrics.jsonl states of a scored task: its metrics and number of samples.

    For a needle task, it also states the fraction of found facts per depth, and under `needle` what
    the report draws as a heat map.

    Args:
        entry: The scores of a task, see `eval.tasks.score`.
    """
    metrics = {name: metric["value"] for name, metric in entry["metrics"].items()}
    needle = entry.get("needle")
    if needle is None:
        return {**metrics, "samples": entry["samples"]}
    depths: dict[str, dict[str, float]] = {}
    for metric, digits in entry["each"].items():
        for depth, found in by_depth(needle, digits).items():
            depths.setdefault(f"{depth:g}", {})[metric] = sum(found) / len(found)
    drawn = {**needle, "each": entry["each"], "chance": entry["chance"]}
    return {**metrics, "samples": entry["samples"], "depths": depths, "needle": drawn}


def check_task_names(settings: TaskSettings) -> None:
    """Raises InputError if a task is unknown, without loading data."""
    index_tasks(select(settings, PREFIX), PREFIX)


class InloopTasks:
    """The loaded tasks of a training run.

    Raises InputError if a task or its data set is missing, or if a task generates text.
    """

    def __init__(self, settings: LimitedTaskSettings) -> None:
        self.limit = settings.limit
        self.selection = select(settings, PREFIX)
        with quiet(offline=not self.selection.built_in):
            self.manager = load_tasks(self.selection, PREFIX, self.limit)
            loaded = self.manager.load([choice.task for choice in self.selection.choices])
        for name, task in loaded["tasks"].items():
            if task.OUTPUT_TYPE == "generate_until":
                raise InputError(
                    f"evaluation.tasks={name}: the task generates text, which is not supported "
                    "during training. Remove the task, and score an export with python -m eval "
                    "lm_eval."
                )

    def check_requests(self, tokenizer: Path, prefix_id: int, max_length: int) -> None:
        """Builds all requests without running a model.

        Raises:
            InputError: a request does not fit into a context of max_length tokens, or is malformed.
        """

        def forward(tokens: Tensor) -> Tensor:
            raise RuntimeError("a dry run must not call the model")

        cpu = torch.device("cpu")
        model = InloopLM(forward, tokenizer, prefix_id, max_length, None, cpu)
        model.is_dry = True
        self.score(model, verbose=True)

    def score(self, model: InloopLM, *, verbose: bool) -> dict[str, dict[str, Any]]:
        """Returns the scores by task; see `eval.tasks.score`.

        lm-eval seeds the global random generators of the process; their states are restored.

        verbose: prints lm-eval's warnings and the number of truncated requests.
        """
        states = random.getstate(), np.random.get_state()
        with quiet(offline=not self.selection.built_in), torch.random.fork_rng():
            scores = score_tasks(model, self.selection, self.manager, self.limit, verbose=verbose)
        random.setstate(states[0])
        np.random.set_state(states[1])
        return scores
