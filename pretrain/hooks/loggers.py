"""The registry of loggers, which are hooks that send the records of a run to other tools.

Loggers run on rank 0 only. `logger=[wandb,tensorboard]` merges `conf/logger/wandb.yaml` and
`conf/logger/tensorboard.yaml`, and builds both hooks. To add a logger, write a hook that takes
(run_dir, config), add a line to LOGGERS, and write a YAML file with its options under `trackers`:

    # conf/logger/tensorboard.yaml
    trackers:
      tensorboard:
        flush_seconds: 30
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from conf.errors import one_of
from conf.wandb_run import LoggerConfig
from pretrain.hooks import Hook

LOGGERS = {
    "mlflow": "pretrain.hooks.mlflow_logger:MlflowLogger",
    "tensorboard": "pretrain.hooks.tensorboard:TensorBoard",
    "trackio": "pretrain.hooks.trackio_logger:TrackioLogger",
    "wandb": "pretrain.hooks.wandb_logger:WandbLogger",
}
"""Class of each logger as `module:class`, by the name of the logger."""


def check_loggers(config: LoggerConfig) -> None:
    """Raises InputError if a logger is unknown."""
    for name in config.trackers:
        one_of("logger.trackers", name, LOGGERS)


def build_loggers(run_dir: Path, config: LoggerConfig) -> list[Hook]:
    """Returns the hooks of the configured loggers. Raises InputError if a logger is unknown."""
    check_loggers(config)
    hooks: list[Hook] = []
    for name in config.chosen():
        module, _, class_name = LOGGERS[name].partition(":")
        hooks.append(getattr(import_module(module), class_name)(run_dir, config))
    return hooks


def scalars(prefix: str, record: Mapping[str, Any]) -> dict[str, float]:
    """Returns the numbers of a record by path, such as `train/source_loss/web`.

    The settings of needle tasks are left out, which do not change.
    """
    found: dict[str, float] = {}
    for key, value in record.items():
        if key == "needle":
            continue
        if isinstance(value, Mapping):
            found |= scalars(f"{prefix}/{key}", value)
        elif isinstance(value, int | float) and key not in ("step", "time"):
            found[f"{prefix}/{key}"] = value
    return found
