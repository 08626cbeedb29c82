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
    endpoint: address of a running server, such as http://localhost:8000/v1, that computes in place
        of this process; `models` then names one folder, whose tokenizer is used.
    api_key: key of the endpoint, null for none.
    batch_size: number of requests computed at a time, with `endpoint` sent at a time.
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
    endpoint: str | None = None
    api_key: str | None = field(default=None, repr=False)
    batch_size: int = 16
    dtype: str = "auto"
    device: str = "auto"
    overwrite: bool = False
    check: bool = False
    logger: LoggerConfig = field(default_factory=LoggerConfig)

    def __post_init__(self) -> None:
        if not self.models:
            raise InputError("models={}: expected at least one model. Add models.NAME=MODEL.")
        if self.endpoint is not None and len(self.models) != 1:
            raise InputError(
                f"endpoint={self.endpoint}: it serves one model, but models names "
                f"{len(self.models)}. Give one model."
            )
        if self.endpoint is not None and not self.endpoint.startswith(("http://", "https://")):
            raise InputError(f"endpoint={self.endpoint}: expected http://HOST:PORT/v1.")
        for key in ("batch_size", "limit"):
            if getattr(self, key) is not None and getattr(self, key) < 1:
                raise InputError(f"{key}={getattr(self, key)}: expected 1 or more.")
