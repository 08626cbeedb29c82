"""One rank fails: its cause is what is said and written, and all ranks end soon."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch

from conf.errors import InputError
from pretrain.health.outcome import read_outcome, write_outcome, writing_outcome
from pretrain.processes import Processes
from tests.conftest import ROOT
from tests.runs import arguments, records


@pytest.mark.parametrize("rank", [0, 1])
def test_the_cause_of_one_rank_is_kept(rank, command, corpus, tmp_path):
    run_dir = tmp_path / "run"
    changes = {"validation__every_steps": 0, "health__step_seconds": 120}
    training = arguments(corpus.folder, run_dir, **changes)
    done = command(
        *("tests.faults.faulty", "error", str(rank), "4"), *training[1:], processes=2, timeout=100
    )
    assert done.returncode == 1
    outcome = json.loads((run_dir / "outcome.json").read_text())
    assert outcome["code"] == 1
    assert outcome["cause"] == f"rank {rank}: RuntimeError: on purpose"
    assert "RuntimeError: on purpose" in done.stderr
    last = max(record["time"] for record in records(run_dir))
    assert outcome["time"] - last < 60  # not what a collective or the watchdog waits
    assert not list(run_dir.glob("*.tmp"))


def test_bad_input_of_one_rank_is_said_by_it(command, corpus, tmp_path):
    run_dir = tmp_path / "run"
    training = arguments(corpus.folder, run_dir, validation__every_steps=0)
    done = command("tests.faults.faulty", "damaged_shard", "1", "4", *training[1:], processes=2)
    assert done.returncode == 1
    assert done.stderr.count("error: code.bin is missing: tokenize the corpus again.") == 1
    assert "rank 1 exitcode  : 2" in done.stderr
    found = json.loads((run_dir / "outcome.json").read_text())
    assert (found["code"], found["cause"][:19]) == (2, "code.bin is missing")


def test_the_first_outcome_is_the_cause(tmp_path, monkeypatch):
    monkeypatch.setattr("pretrain.health.outcome.barrier", lambda: None)
    (tmp_path / "logs").mkdir()
    write_outcome(tmp_path, 2, "of the start before")

    def run() -> None:
        with writing_outcome(tmp_path, Processes(torch.device("cpu"), 0, 1)):
            assert read_outcome(tmp_path) is None
            write_outcome(tmp_path, 1, "rank 3: RuntimeError: first")
            raise InputError("connection closed by peer")

    with pytest.raises(InputError, match="closed by peer"):
        run()
    assert json.loads((tmp_path / "outcome.json").read_text())["cause"].endswith("first")
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["outcome.json"]


def test_a_rank_that_waits_ends_after_another_has_failed(tmp_path):
    """A rank inside a GPU kernel waits in the same way."""
    (tmp_path / "logs" / "hang").mkdir(parents=True)
    program = (
        "import sys, threading, types\n"
        "from pathlib import Path\n"
        "import pretrain.health.watchdog as w\n"
        "w.GRACE_SECONDS = w.LOOK_SECONDS = 0.2\n"
        "from pretrain.health.config import HealthConfig\n"
        "processes = types.SimpleNamespace(rank=1, world_size=2, device=None)\n"
        "dog = w.Watchdog(Path(sys.argv[1]), HealthConfig(step_seconds=1000), processes)\n"
        "dog.ends = w.time.monotonic() + 1000\n"
        "threading.Thread(target=dog._watch, daemon=True).start()\n"
        "print('waits', flush=True)\n"
        "threading.Event().wait(500)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "waits\n"
    write_outcome(tmp_path, 1, "rank 0: RuntimeError: first")
    assert process.wait(timeout=100) == 1
