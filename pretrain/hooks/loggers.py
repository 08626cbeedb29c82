"""The registry of loggers: hooks that send the run's records elsewhere; rank 0 only.

`logger=[wandb,tensorboard]` merges `conf/logger/wandb.yaml` and `conf/logger/tensorboard.yaml`, and
both hooks are built. A new logger is a hook that takes (run_dir, config), a line in LOGGERS, and a
YAML with its options under `trackers`:

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
    "tensorboard": "pretrain.hooks.tensorboard:TensorBoard",
    "wandb": "pretrain.hooks.wandb_logger:WandbLogger",
}
"""Name of each logger -> `module:class`."""


def check_loggers(config: LoggerConfig) -> None:
    """Raises InputError where a logger is not known."""
    for name in config.trackers:
        one_of("logger.trackers", name, LOGGERS)


def build_loggers(run_dir: Path, config: LoggerConfig) -> list[Hook]:
    """Returns the hooks of the loggers that the config chooses. Raises InputError."""
    check_loggers(config)
    hooks: list[Hook] = []
    for name in config.chosen():
        module, _, class_name = LOGGERS[name].partition(":")
        hooks.append(getattr(import_module(module), class_name)(run_dir, config))
    return hooks


def scalars(prefix: str, record: Mapping[str, Any]) -> dict[str, float]:
    """Returns the numbers of a record by path, such as `train/source_loss/web`."""
    found: dict[str, float] = {}
    for key, value in record.items():
        if isinstance(value, Mapping):
            found |= scalars(f"{prefix}/{key}", value)
        elif isinstance(value, int | float) and key not in ("step", "time"):
            found[f"{prefix}/{key}"] = value
    return found
