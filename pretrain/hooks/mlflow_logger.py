"""Sends metrics to an MLflow server, on rank 0 only."""

from __future__ import annotations

import importlib.util
import math
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from conf.errors import InputError
from conf.options import read_options
from conf.text import flatten
from conf.wandb_run import LoggerConfig
from pretrain.hooks.queued_logger import QueuedLogger, Service

BATCH_PARAMS = 100
MAX_VALUE = 500
"""Characters of a setting that MLflow stores at least."""


@dataclass
class Options:
    """Options of `logger.trackers.mlflow`.

    uri: address of the server, such as http://127.0.0.1:5000, or sqlite:///mlflow.db; null for the
        environment variable MLFLOW_TRACKING_URI.
    """

    uri: str | None = None


class MlflowLogger(QueuedLogger):
    """Logs a run as one MLflow run, whose id is stored in the run folder for restarts.

    The experiment is `logger.project`. A resumed run sends the steps that it repeats once more.
    """

    service: ClassVar[str] = "MLflow"

    def __init__(self, run_dir: Path, config: LoggerConfig) -> None:
        super().__init__(run_dir, config)
        key = "logger.trackers.mlflow"
        options: Options = read_options(key, Options, config.trackers["mlflow"] or {})
        if importlib.util.find_spec("mlflow") is None:
            raise InputError(
                "logger=mlflow: requires the package mlflow-skinny, which is not installed. Run "
                "pip install mlflow-skinny."
            )
        self.uri = options.uri or os.environ.get("MLFLOW_TRACKING_URI")
        if not self.uri:
            raise InputError(
                f"{key}.uri=null: no server is known. Set it, or MLFLOW_TRACKING_URI, to an "
                "address such as http://127.0.0.1:5000."
            )

    def open(self, name: str, settings: dict[str, Any]) -> Service:
        """Starts or continues the MLflow run."""
        from mlflow.entities import Param
        from mlflow.tracking import MlflowClient

        client = MlflowClient(tracking_uri=self.uri)
        id_file = self.run_dir / "mlflow_id"
        if id_file.exists():
            run_id = id_file.read_text().strip()
            client.update_run(run_id, status="RUNNING")
            return _Run(client, run_id)
        experiment = client.get_experiment_by_name(self.config.project)
        number = experiment.experiment_id if experiment else None
        number = number or client.create_experiment(self.config.project)
        run_id = client.create_run(number, run_name=name).info.run_id
        params = [Param(key, str(value)[:MAX_VALUE]) for key, value in flatten(settings).items()]
        for start in range(0, len(params), BATCH_PARAMS):
            client.log_batch(run_id, params=params[start : start + BATCH_PARAMS])
        id_file.write_text(run_id)
        return _Run(client, run_id)


class _Run:
    """An open run of MLflow."""

    def __init__(self, client: Any, run_id: str) -> None:
        self.client = client
        self.run_id = run_id

    def log(self, line: dict[str, float]) -> None:
        """Sends the numbers of a record in one request."""
        from mlflow.entities import Metric

        now, step = int(1000 * time.time()), int(line["step"])
        metrics = [
            Metric(key, float(value), now, step)
            for key, value in line.items()
            if key != "step" and math.isfinite(value)
        ]
        self.client.log_batch(self.run_id, metrics=metrics)

    def finish(self) -> None:
        """Marks the run as finished."""
        self.client.set_terminated(self.run_id)
