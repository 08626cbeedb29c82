"""Settings for the loggers of metrics, and a function that opens a run in Weights & Biases."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from conf.errors import InputError, one_of

MODES = ("auto", "online", "offline", "disabled")


@dataclass
class LoggerConfig:
    """Destinations of metrics in addition to `metrics.jsonl`, which is always written.

    wandb: mode of Weights & Biases: auto (online if an API key is set, else offline), online,
        offline or disabled.
    project: name of the run's project in Weights & Biases.
    entity: user or team that owns the project, null for the default of Weights & Biases.
    group: name of the group of runs that the run belongs to, null for none.
    progress: whether to show progress on the terminal.
    trackers: further loggers for pretraining by name, each with its options.
    """

    wandb: str = "disabled"
    project: str = "headwater"
    entity: str | None = None
    group: str | None = None
    progress: bool = True
    trackers: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        one_of("logger.wandb", self.wandb, MODES)

    def chosen(self) -> list[str]:
        """Returns the names of the loggers to run."""
        return [*(["wandb"] if self.wandb != "disabled" else []), *self.trackers]

    def check_wandb_only(self) -> None:
        """Raises InputError if other loggers are set for a command that supports only wandb."""
        for name in self.trackers:
            raise InputError(
                f"logger.trackers={name}: this command logs only to files and wandb. Remove {name}."
            )


def open_run(
    config: LoggerConfig,
    name: str,
    folder: Path,
    settings: dict[str, Any],
    run_id: str | None = None,
) -> Any:
    """Opens a run that stores its files in `folder`; if `run_id` is given, continues that run.

    Raises:
        InputError: wandb=online is set without a key.
    """
    import wandb

    check_key(config)
    online = config.wandb == "online" or (config.wandb == "auto" and _has_key())
    folder.mkdir(parents=True, exist_ok=True)
    return wandb.init(
        project=config.project,
        entity=config.entity,
        group=config.group,
        name=name,
        id=run_id,
        resume="allow" if run_id else None,
        mode="online" if online else "offline",
        dir=folder,
        config=settings,
        settings=wandb.Settings(silent=True, console="off"),
    )


def check_key(config: LoggerConfig) -> None:
    """Raises InputError if wandb=online is set without a key."""
    if config.wandb == "online" and not _has_key():
        raise InputError(
            "logger.wandb=online: no API key was found. Set WANDB_API_KEY, or use "
            "logger.wandb=offline."
        )


def _has_key() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    netrc = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
    return netrc.is_file() and "wandb" in netrc.read_text()
