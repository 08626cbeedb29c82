"""A run folder that another job has, settings that changed, crash loops, wandb that is away."""

from __future__ import annotations

import json
import math
import os
import socket
import subprocess
import sys
from typing import Any

import pytest

from conf.errors import InputError
from pretrain.health import run_lock
from pretrain.health.run_lock import RunLock
from tests.conftest import ROOT
from tests.patience import limit
from tests.runs import arguments, records

HOLD = """
import sys
from pathlib import Path
from pretrain.health.run_lock import RunLock
RunLock(Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
"""


def test_a_second_job_is_refused_and_a_dead_ones_lock_is_not(tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "run")],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    expected = rf"run is in use by pid {holder.pid} on {socket.gethostname()}, job 4711\. Wait"
    with pytest.raises(InputError, match=expected):
        RunLock(tmp_path / "run")
    holder.kill()
    holder.communicate()
    RunLock(tmp_path / "run").release()
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_who_reads_what_a_run_says_makes_no_difference(corpus, tmp_path):
    """A log on a full disk, a pipe whose reader is gone."""
    reader, writer = os.pipe()
    os.close(reader)
    with open("/dev/full", "w") as full, open(writer, "w") as gone:
        for number, (out, errors) in enumerate(((full, gone), (gone, full))):
            run_dir = tmp_path / f"run_{number}"
            training = arguments(corpus.folder, run_dir, stop_after=3)
            if number:
                training.append("health.time_limit_minutes=1e-6")
            done = subprocess.run(
                [sys.executable, "-m", *training],
                cwd=ROOT,
                stdout=out,
                stderr=errors,
                timeout=limit(120),
            )
            assert done.returncode == (85 if number else 0)
            assert len(records(run_dir)) == (1 if number else 3)


def test_a_lock_of_another_host_counts_as_long_as_it_is_touched(tmp_path, monkeypatch):
    monkeypatch.setattr(run_lock, "TOUCH_SECONDS", 0.05)
    monkeypatch.setattr(run_lock, "WATCH_SECONDS", limit(0.5))
    monkeypatch.setattr(RunLock, "_flock", lambda self: True)  # as between two machines
    run_dir = tmp_path / "run"
    here = RunLock(run_dir)
    content = json.loads((run_dir / "lock").read_text()) | {"host": "elsewhere"}
    (run_dir / "lock").write_text(json.dumps(content))
    with pytest.raises(InputError, match="on elsewhere"):
        RunLock(run_dir)
    here._released.set()  # that host is dead
    RunLock(run_dir).release()


def test_a_run_in_use_is_refused_and_left_as_it_is(command, corpus, tmp_path):
    run_dir = tmp_path / "run"
    lock = RunLock(run_dir)
    done = command(*arguments(corpus.folder, run_dir))
    assert done.returncode == 2, done.stderr
    assert f"in use by pid {os.getpid()}" in done.stderr
    assert [path.name for path in run_dir.iterdir()] == ["lock"]
    lock.release()


def test_changed_settings_are_refused_unless_they_are_named(command, corpus, tmp_path):
    run_dir = tmp_path / "run"
    quick: dict[str, Any] = {"validation__every_steps": 0, "stop_after": 5}
    assert command(*arguments(corpus.folder, run_dir, **quick)).returncode == 0
    env = json.loads((run_dir / "env.json").read_text())
    env["packages"]["torch"] = "2.9.0"
    (run_dir / "env.json").write_text(json.dumps(env))
    quick |= {"optim__learning_rate": 0.02, "precision": "bf16", "stop_after": 6}
    refused = "optim.learning_rate was 0.01, now 0.02"
    for allowed in ("[precision]", "[optim.beta1,precision]"):
        done = command(*arguments(corpus.folder, run_dir, allow_change=allowed, **quick))
        assert done.returncode == 2, done.stderr
        assert f"started with other settings ({refused}). Restore them" in done.stderr
        assert "'allow_change=[optim.learning_rate]'" in done.stderr
    done = command(*arguments(corpus.folder, run_dir, allow_change="[optim,precision]", **quick))
    assert done.returncode == 0, done.stderr
    assert f"changed since the last start: {refused}" in done.stdout
    assert "warning: packages.torch was 2.9.0 at the last start, now" in done.stdout
    assert records(run_dir)[-1]["step"] == 6


def test_a_crash_loop_ends(command, corpus, tmp_path):
    run_dir = tmp_path / "run"
    training = arguments(
        corpus.folder,
        run_dir,
        validation__every_steps=0,
        checkpoint__asynchronous="false",
        health__restarts_at_most=1,
    )
    for code in (1, 1, 1, 86):  # the first comes from step 0 to the checkpoint of step 5
        done = command("tests.faults.faulty", "error", "0", "7", *training[1:])
        assert done.returncode == code, done.stderr
        assert json.loads((run_dir / "outcome.json").read_text())["code"] == code
    assert "was started 2 times from step 5 without reaching its next checkpoint" in done.stderr


def test_wandb_that_does_not_answer_costs_no_step_its_time(command, corpus, tmp_path):
    """A server that takes connections and says nothing."""
    longest = {}
    answer_seconds = math.ceil(limit(2))
    with socket.create_server(("127.0.0.1", 0)) as server:
        away = {
            "WANDB_API_KEY": "0" * 40,
            "WANDB_INIT_TIMEOUT": f"{answer_seconds}",
            "WANDB_BASE_URL": f"http://127.0.0.1:{server.getsockname()[1]}",
        }
        for logger in ("files", "wandb"):
            run_dir = tmp_path / logger
            changes = {"logger": logger, "validation__every_steps": 0}
            done = command(*arguments(corpus.folder, run_dir, **changes), **away)
            assert done.returncode == 0, done.stderr
            assert len(records(run_dir)) == 20
            longest[logger] = max(record["step_seconds"] for record in records(run_dir)[1:])
    assert "warning: wandb" in done.stderr
    assert longest["wandb"] < max(answer_seconds, 2 * longest["files"])
