"""Configuration of `python -m eval lm_eval`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from conf.errors import InputError
from conf.wandb_run import LoggerConfig
from eval.tasks.suites import LOCAL


@dataclass
class LmEvalConfig:
    """Configuration of `lm_eval`.

    models: folders, runs, their checkpoints or names on the Hub, keyed by the names in the tables.
    tasks: `local` for all tasks of `task_folder`; a suite of `conf/tasks/`; a folder of task
        files; an lm-eval task; or a list of these.
    task_folder: a folder of task files, which replace lm-eval tasks with the same names.
    out: JSON file of results; models whose results it already holds are skipped.
    overwrite: discards the results that the file already holds.
    num_fewshot: number of few-shot examples for all tasks, null for that of the suite or task.
    limit: number of samples per task, null for all; scores with different limits are not
        comparable.
    chat: renders prompts with the model's own chat template.
    dtype: dtype to compute in; auto for the stored one if the device supports it, else float32.
    check: checks that the tasks exist and exits; models and data sets may be missing.
    """

    models: dict[str, str] = field(default_factory=dict)
    tasks: Any = LOCAL
    task_folder: str | None = None
    out: str = MISSING
    num_fewshot: int | None = None
    limit: int | None = None
    chat: bool = False
    batch_size: int = 16
    dtype: str = "auto"
    device: str = "auto"
    overwrite: bool = False
    check: bool = False
    logger: LoggerConfig = field(default_factory=LoggerConfig)

    def __post_init__(self) -> None:
        if not self.models:
            raise InputError("models={}: expected at least one model. Add models.NAME=MODEL.")
        for key in ("batch_size", "limit"):
            if getattr(self, key) is not None and getattr(self, key) < 1:
                raise InputError(f"{key}={getattr(self, key)}: expected 1 or more.")
