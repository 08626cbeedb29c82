"""The forecast of a ladder, compared with the loss that the run has reached."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from conf.errors import InputError
from eval.report.forecast import forecast_check
from eval.report.run_folder import RunFolder
from pretrain.forecast import read_forecast
from tests.runs import SETTINGS

MODEL = {
    key.removeprefix("model."): value for key, value in SETTINGS.items() if key.startswith("model.")
} | {"name": "m", "num_heads": 4, "num_kv_heads": 2}
FORECAST = {
    "hidden_size": 64,
    "num_layers": 2,
    "tokens": 20_480,
    "level": 0.9,
    "loss": {"value": 3.0, "low": 2.9, "high": 3.1},
    "sources": {"code": {"bits_per_byte": {"value": 1.5, "low": 1.4, "high": 1.6}}},
}


def run(loss: float, tokens: int = 20_480, forecast: object = FORECAST) -> RunFolder:
    config = {"model": MODEL, "recipe": {"stages": {"short": {"tokens": tokens}}}}
    sources = {"code": {"loss": loss, "bits_per_byte": 1.52}}
    records: list[dict[str, Any]] = [
        {"kind": "validation", "loss": loss, "sources": sources},
        {"kind": "event", "event": "finish"},
    ]
    return RunFolder(Path("runs/mine"), config, {"forecast": forecast}, records)


def test_a_loss_inside_the_interval_agrees():
    found = forecast_check(run(3.05))
    assert found is not None
    assert found["agrees"]
    assert "reached 3.050, inside the interval; the forecast is off by -1.6%" in found["text"]
    assert "code 1.500 forecast, 1.520 reached" in found["text"]


def test_a_loss_outside_does_not_agree():
    found = forecast_check(run(3.2))
    assert found is not None
    assert not found["agrees"]


def test_another_run_is_not_compared():
    found = forecast_check(run(3.05, tokens=40_960))
    assert found is not None
    assert "another run than this one of 40,960 tokens" in found["text"]


def test_without_a_forecast_the_report_says_nothing():
    assert forecast_check(run(3.0, forecast=None)) is None


def test_a_file_that_is_not_a_forecast_is_refused(tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        read_forecast(str(tmp_path))
    (tmp_path / "forecast.json").write_text("[]")
    with pytest.raises(InputError, match="is not a forecast"):
        read_forecast(str(tmp_path))
