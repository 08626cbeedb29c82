"""Preparations: their progress in `status`, and the array of a chain from a plan."""

from __future__ import annotations

import json

import pytest

from conf.errors import InputError
from data_pipeline.tokenizing.progress import Progress
from launch.slurm.array_plan import read_array_plan
from launch.slurm.manage import StatusConfig, status
from launch.slurm.preparations import preparation_line
from launch.slurm.settings import read_cluster

ARRAY = {
    "tasks": 12,
    "cpus": 48,
    "memory_bytes": 90 << 30,
    "limits": {"scan": 7200, "match": 600, "merge": 600, "prepare": 1230, "encode": 3600},
}


@pytest.fixture
def plan(tmp_path):
    path = tmp_path / "plan.json"
    path.write_text(json.dumps({"preparation_plan": 1, "array": ARRAY}))
    return path


def test_a_chain_takes_its_array_from_a_plan(command, plan, tmp_path):
    cluster = tmp_path / "my.yaml"
    cluster.write_text("gpus_per_node: 8\nslurm: {cpus_per_task: 96, time: 2-00:00:00}\n")
    given = [f"cluster={cluster}", "name=mine", f"out={tmp_path / 'run'}", f"data={tmp_path}/data"]
    given += ["only=[tokenize,manifest]", "dry_run=true"]
    done = command("launch", "chain", *given, f"data_plan={plan}")
    assert done.returncode == 0, done.stderr
    head, array, single = done.stdout.split("# ---- ")
    assert not head
    assert "5 times with time limits of 120, 10, 10, 21, 60 minutes" in array
    for line in ("--array=0-11", "--cpus-per-task=48", "--mem=92160M"):
        assert f"#SBATCH {line}" in array.splitlines(), line
    assert "srun --ntasks=1 --cpus-per-task=48 " in array
    assert "#SBATCH --array" not in single
    assert "#SBATCH --cpus-per-task=96" in single.splitlines()
    without = command("launch", "chain", *given)
    assert "#SBATCH --array=0-3" in without.stdout
    done = command("launch", "chain", *given, f"data_plan={cluster}")
    assert done.returncode == 2
    assert f"data_plan={cluster}: not a plan of a preparation" in done.stderr


def test_a_memory_limit_of_the_cluster_is_retained(plan, tmp_path):
    path = tmp_path / "my.yaml"
    path.write_text("slurm: {mem: 500G}\n")
    array = read_array_plan(str(plan))
    assert array.minutes == [120, 10, 10, 21, 60]
    slurm = array.resources(read_cluster(str(path))).slurm
    assert (slurm.mem, slurm.cpus_per_task) == ("500G", 48)


def test_status_shows_preparations(tmp_path, capsys):
    work = tmp_path / "data" / "web.partial"
    (work / "scan").mkdir(parents=True)
    outline = {"phases": ["scan", "prepare"], "unit_bytes": [1000, 3000]}
    (work / "outline.json").write_text(json.dumps(outline))
    (work / "plan.json").write_text("{}")
    (work / "scan" / "000001.json").write_text("{}")
    for place in (tmp_path / "data", tmp_path / "data" / "web", work):
        status(StatusConfig(runs=str(tmp_path / "runs"), data=str(place)))
        title, line = capsys.readouterr().out.splitlines()
        assert title.split()[:4] == ["preparation", "state", "phase", "done"]
        assert line.split()[1:4] == ["running", "scan", "75.0%"]
    with pytest.raises(InputError, match="no runs were found"):
        status(StatusConfig(runs=str(tmp_path / "runs"), data=str(tmp_path / "other")))


def test_a_preparation_in_one_line(tmp_path):
    found = Progress(tmp_path / "web", "encode", 0.25, 8e6, 120.0, 4, True)
    line = preparation_line(found)
    assert line.endswith("running · encode 25.0% · 8.0 MB/s · 2 min 0 s left in this phase")
    found = Progress(tmp_path / "web", "match", 0.0, None, None, 1, False)
    assert preparation_line(found).endswith("not responding · match 0.0%")
