"""TensorBoard as a logger: a run's event files, read back."""

from __future__ import annotations

import os

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from conf.errors import InputError
from conf.wandb_run import LoggerConfig
from pretrain.hooks.loggers import build_loggers
from tests.runs import arguments, records


def test_a_run_that_resumes_has_each_step_once(command, corpus, tmp_path):
    """Next to wandb, as `logger=[wandb,tensorboard]`."""
    run_dir = tmp_path / "run"
    quiet = {"WANDB_API_KEY": "", "NETRC": os.devnull}
    changes = {"logger": "[wandb,tensorboard]", "checkpoint__every_steps": 4}
    for stop in (4, 8):
        done = command(*arguments(corpus.folder, run_dir, stop_after=stop, **changes), **quiet)
        assert done.returncode == 0, done.stderr
    assert len(list((run_dir / "wandb").glob("offline-run-*"))) == 2
    events = EventAccumulator(str(run_dir / "tensorboard"))
    events.Reload()
    for name in ("loss", "grad_norm", "mfu"):
        found = {event.step: event.value for event in events.Scalars(f"train/{name}")}
        expected = {record["step"]: record[name] for record in records(run_dir)}
        assert list(found) == list(range(1, 9))
        assert found == pytest.approx(expected, rel=1e-6)
    (validated,) = records(run_dir, "validation")
    for source, score in validated["sources"].items():
        (event,) = events.Scalars(f"validation/sources/{source}/loss")
        assert (event.step, event.value) == (0, pytest.approx(score["loss"], rel=1e-6))


def test_a_bad_option_is_refused(tmp_path):
    config = LoggerConfig(trackers={"tensorboard": {"flush": 3}})
    with pytest.raises(InputError, match=r"logger\.trackers\.tensorboard\.flush=3: unknown option"):
        build_loggers(tmp_path, config)
