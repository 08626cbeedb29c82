"""Run folders and corpora of an earlier version are understood: resumed, traced and exported.

`earlier_run.tar.xz` holds a corpus, a Muon run over two stages that was stopped after step 8 of 20,
the arguments it was started with, and the records of the same run without the stop; all made by
version 29dd404, before optimizers had a registry and stages a type of their own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT
from tests.patience import limit

ARCHIVE = Path(__file__).with_name("earlier_run.tar.xz")
OF_PRESETS = ("optim.min_learning_rate=2e-4",)
"""Settings that the arguments took from presets, which have other values now."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path


def run(folder: Path, *arguments: str) -> str:
    """Runs a command with `folder` as its working directory and returns its output."""
    done = subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=limit(120),
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def losses(records: list[dict[str, Any]]) -> list[float]:
    return [record["loss"] for record in records if record["kind"] == "train"]


@pytest.mark.slow
def test_an_earlier_run_is_resumed_exported_and_traced(folder: Path) -> None:
    """The same arguments continue the run to the curve and the ledger that it would have had."""
    before = losses(lines(folder / "run/metrics.jsonl"))
    arguments = (folder / "arguments.txt").read_text().split()
    said = run(folder, "pretrain", *arguments, *OF_PRESETS, "run_dir=run")
    assert "resuming after step 8" in said
    found = losses(lines(folder / "run/metrics.jsonl"))
    assert found[:8] == before
    assert found == pytest.approx(losses(lines(folder / "whole_metrics.jsonl")), rel=1e-4)
    assert lines(folder / "run/ledger.jsonl") == lines(folder / "whole_ledger.jsonl")

    run(folder, "pretrain", "export", "run=run", "out=exported")
    config = json.loads((folder / "exported/config.json").read_text())
    assert (config["model_type"], config["sliding_window"]) == ("mistral", 24)
    assert config["rope_theta"] == 20000.0  # of the last stage
    assert "code" in run(folder, "data_pipeline", "where", "run=run", "step=3")
