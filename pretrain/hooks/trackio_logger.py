"""Sends metrics to trackio, on rank 0 only: a database on this machine, or a Space of the Hub.

To view the runs on this machine: trackio show
"""

from __future__ import annotations

import importlib.util
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from conf.errors import InputError
from conf.options import read_options
from conf.wandb_run import LoggerConfig
from pretrain.hooks.queued_logger import QueuedLogger, Service


@dataclass
class Options:
    """Options of `logger.trackers.trackio`.

    space: owner/name of a Space on the Hugging Face Hub that stores and shows the runs; null for
        this machine (TRACKIO_DIR).
    """

    space: str | None = None


class TrackioLogger(QueuedLogger):
    """Logs a run as one trackio run, whose name is stored in the run folder for restarts.

    The project is `logger.project`. A resumed run sends the steps that it repeats once more.
    """

    service: ClassVar[str] = "trackio"

    def __init__(self, run_dir: Path, config: LoggerConfig) -> None:
        super().__init__(run_dir, config)
        key = "logger.trackers.trackio"
        self.options: Options = read_options(key, Options, config.trackers["trackio"] or {})
        if importlib.util.find_spec("trackio") is None:
            raise InputError(
                "logger=trackio: requires the package trackio, which is not installed. Run pip "
                'install -c constraints.txt -e ".[trackio]".'
            )

    def open(self, name: str, settings: dict[str, Any]) -> Service:
        """Starts or continues the trackio run."""
        import trackio

        name_file = self.run_dir / "trackio_name"
        if not name_file.exists():  # trackio identifies a run by its name
            name_file.write_text(f"{name}-{secrets.token_hex(2)}")
        run = trackio.init(
            project=self.config.project,
            name=name_file.read_text(),
            group=self.config.group,
            space_id=self.options.space,
            config=settings,
            resume="allow",
            embed=False,
            auto_log_cpu=False,
            auto_log_gpu=False,
        )
        return _Run(run)


class _Run:
    """An open run of trackio."""

    def __init__(self, run: Any) -> None:
        self.run = run

    def log(self, line: dict[str, float]) -> None:
        """Queues the numbers of a record under their step."""
        self.run.log(
            {key: value for key, value in line.items() if key != "step"}, int(line["step"])
        )

    def finish(self) -> None:
        """Writes what is pending."""
        self.run.finish()
