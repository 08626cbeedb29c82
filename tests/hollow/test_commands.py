"""Whole commands of the project, in processes of their own: checkpoints, resume, torchrun."""

from __future__ import annotations

import json

from tests.hollow.harness import SMALL
from tests.runs import arguments, records


def run(command, corpus, run_dir, processes: int = 0, **changes):
    defaults = {key.replace(".", "__"): value for key, value in SMALL.items()}
    line = arguments(corpus.folder, run_dir, **(defaults | changes))
    done = command(*line, processes=processes, HOLLOW_GPUS=str(max(1, processes)))
    assert done.returncode == 0, done.stdout + done.stderr
    return records(run_dir)


def test_a_run_with_validation_and_checkpoints_changes_its_stage_and_resumes(
    command, corpus, tmp_path
):
    changes = {"checkpoint__every_steps": 4, "validation__every_steps": 5}
    run(command, corpus, tmp_path / "run", stop_after=8, **changes)
    resumed = run(command, corpus, tmp_path / "run", stop_after=14, **changes)
    assert [record["step"] for record in resumed] == list(range(1, 15))
    assert [record["seq_len"] for record in resumed] == [128] * 14
    assert {record["stage"] for record in resumed} == {"short", "long"}
    assert (tmp_path / "run" / "checkpoints" / "step_12").is_dir()
    events = records(tmp_path / "run", "event")
    assert "resume" in [event["event"] for event in events]


def test_two_ranks_train_under_torchrun_with_tensor_parallelism(command, corpus, tmp_path):
    changes = {"parallel__tp": 2, "checkpoint__every_steps": 2, "stop_after": 3}
    assert len(run(command, corpus, tmp_path / "run", processes=2, **changes)) == 3
    assert (tmp_path / "run" / "checkpoints" / "step_2").is_dir()


def test_a_node_is_checked(command, tmp_path):
    line = ("launch.slurm.node_check", str(tmp_path), "2", "100")
    done = command(*line, processes=2, HOLLOW_GPUS="2")
    assert done.returncode == 0, done.stdout + done.stderr
    nodes = json.loads((tmp_path / "nodes.json").read_text())
    assert nodes["problems"] == {}
    assert nodes["nodes"][0]["gpus"] == 2
