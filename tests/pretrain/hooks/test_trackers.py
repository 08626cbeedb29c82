"""MLflow and trackio as loggers, with the real packages where they are installed."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

import pytest

from conf.errors import InputError
from conf.wandb_run import LoggerConfig
from pretrain.hooks import queued_logger
from pretrain.hooks.loggers import LOGGERS, build_loggers


@dataclasses.dataclass
class Config:
    name: str = "river"
    seed: int = 7
    optim: dict[str, Any] = dataclasses.field(default_factory=lambda: {"learning_rate": 0.01})


TRAINER: Any = SimpleNamespace(config=Config())


def log_steps(run_dir, name: str, steps: range, options: dict[str, Any]) -> None:
    """Runs a logger like a training process that takes these steps."""
    config = LoggerConfig(trackers={name: options}, project="tests")
    (hook,) = build_loggers(run_dir, config)
    hook.on_start(TRAINER)
    for step in steps:
        record = {"kind": "train", "step": step, "loss": 1.0 / step, "stage": "short"}
        hook.on_record(record | {"source_loss": {"code": 2.0 / step}})
    hook.on_record({"kind": "event", "event": "checkpoint", "step": steps[-1]})
    hook.on_end(TRAINER)


def test_a_run_in_mlflow_continues_after_a_restart(tmp_path, monkeypatch, capsys):
    tracking: Any = pytest.importorskip("mlflow.tracking")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # a database needs the whole package
    uri = f"file://{tmp_path / 'mlruns'}"
    log_steps(tmp_path, "mlflow", range(1, 4), {"uri": uri})
    log_steps(tmp_path, "mlflow", range(4, 6), {"uri": uri})
    client = tracking.MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("tests")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.run_name == "river"
    assert run.info.status == "FINISHED"
    assert run.data.params == {"name": "river", "seed": "7", "optim.learning_rate": "0.01"}
    for name, first in (("train/loss", 1.0), ("train/source_loss/code", 2.0)):
        points = client.get_metric_history(run.info.run_id, name)
        assert {point.step: point.value for point in points} == {
            step: first / step for step in range(1, 6)
        }
    assert "warning" not in capsys.readouterr().err


def test_a_run_in_trackio_continues_after_a_restart(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    trackio: Any = pytest.importorskip("trackio")
    log_steps(tmp_path, "trackio", range(1, 4), {})
    log_steps(tmp_path, "trackio", range(4, 6), {})
    (run,) = trackio.Api().runs("tests")
    assert run.name == (tmp_path / "trackio_name").read_text()
    logs = trackio.sqlite_storage.SQLiteStorage.get_logs("tests", run.name)
    assert {row["step"]: row["train/loss"] for row in logs} == {
        step: 1.0 / step for step in range(1, 6)
    }
    assert "warning" not in capsys.readouterr().err


class Broken(queued_logger.QueuedLogger):
    """A service that cannot be reached."""

    service = "River"

    def open(self, name: str, settings: dict[str, Any]) -> queued_logger.Service:
        raise ConnectionError("no route")


def test_a_service_that_fails_is_a_warning(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(LOGGERS, "river", f"{__name__}:Broken")
    log_steps(tmp_path, "river", range(1, 3), {})
    found = capsys.readouterr().err
    assert found == (
        "warning: River failed (ConnectionError: no route). metrics.jsonl contains every line.\n"
    )


@pytest.mark.parametrize("name", ["mlflow", "trackio"])
def test_a_missing_package_is_named(name, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=f"logger={name}: requires the package {name}"):
        build_loggers(tmp_path, LoggerConfig(trackers={name: {}}))


def test_mlflow_needs_a_server(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(InputError, match=r"logger.trackers.mlflow.uri=null: no server is known"):
        build_loggers(tmp_path, LoggerConfig(trackers={"mlflow": {}}))
