"""Managed jobs of SkyPilot: the task, what is refused, a stand-in for `sky`, and new starts."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from conf.errors import InputError
from launch.code_copy import PACKAGES
from launch.sky import jobs
from launch.sky.ended import ended
from launch.sky.settings import SkyConfig, read_sky_cluster
from launch.sky.submit import check_idle
from launch.sky.task import INSTALLED, PORT, as_yaml, run_script, task
from launch.slurm.manage import StopConfig, read_status, stop
from launch.training import compose
from tests.conftest import ROOT
from tests.patience import limit
from tests.ports import free_port
from tests.runs import arguments

CLUSTER = """\
name: rented
gpus_per_node: {gpus}
device: {device}
gpu_memory_gib: 80
sky:
  infra: aws
  accelerators: H100:8
  use_spot: true
  volumes: {{{mount}: text}}
  env: {{NCCL_SOCKET_IFNAME: ens5}}
  secrets: [MY_KEY]
"""
STAND_IN = """\
#!{python}
import json, os, sys
folder = {folder!r}
with open(folder + "/calls.jsonl", "a") as file:
    file.write(json.dumps(sys.argv[1:]) + "\\n")
if sys.argv[1:3] == ["jobs", "queue"]:
    print("Fetching managed job statuses...")
    print(open(folder + "/queue.json").read())
"""


@pytest.fixture
def cluster(tmp_path, corpus):
    path = tmp_path / "rented.yaml"
    path.write_text(CLUSTER.format(gpus=2, device="cpu", mount=corpus.folder))
    return path


@pytest.fixture
def sky(tmp_path, monkeypatch):
    """A stand-in for the program, with its calls and its queue as files of the folder."""
    folder = tmp_path / "bin"
    folder.mkdir()
    program = folder / "sky"
    program.write_text(STAND_IN.format(python=sys.executable, folder=str(folder)))
    program.chmod(0o755)
    (folder / "queue.json").write_text("[]")
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setenv("MY_KEY", "secret-value")
    jobs.queue.cache_clear()
    yield folder
    jobs.queue.cache_clear()


def training(corpus, tmp_path, run_dir="runs/mine", **changes):
    copies = {"checkpoint__copy_to": f"file://{tmp_path}/copies"} | changes
    return arguments(corpus.folder, Path(run_dir), **copies)[1:]


def test_the_task_starts_again_only_on_the_code_for_it(corpus, cluster, tmp_path):
    run = compose(training(corpus, tmp_path))
    made = task(SkyConfig(str(cluster), nodes=4), read_sky_cluster(str(cluster)), run)
    content = yaml.safe_load(as_yaml(made, "python -m launch sky"))
    assert content == made
    assert content["num_nodes"] == 4
    assert content["resources"]["job_recovery"] == {
        "max_restarts_on_errors": 0,
        "recover_on_exit_codes": [85],
    }
    assert content["secrets"] == {"MY_KEY": ""}
    assert INSTALLED in content["run"]
    for script in (content["setup"], content["run"]):
        assert subprocess.run(["bash", "-n"], input=script, text=True).returncode == 0
    if importlib.util.find_spec("sky"):  # SkyPilot itself reads it
        from sky import Task

        assert Task.from_yaml_config(made).num_nodes == 4


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"data__folder": "data/web"}, "data.folder=data/web: the nodes do not have this path"),
        ({"checkpoint__copy_to": None}, "run_dir=runs/mine: this folder vanishes with the node"),
        ({"nodes": 2}, "run_dir=runs/mine: 2 nodes write checkpoints together, and do not share"),
        ({"run_dir": "/home/me/run"}, "run_dir=/home/me/run: an absolute path of this machine"),
        ({"init_from": "models/base"}, "init_from=models/base: the nodes do not have this path"),
    ],
)
def test_what_vanishing_nodes_would_lose_is_refused(corpus, cluster, tmp_path, change, said):
    from launch.sky.check import check_job

    given = {key.partition("=")[0]: key for key in training(corpus, tmp_path)}
    config = SkyConfig(str(cluster), nodes=change.get("nodes", 1))
    for key, value in change.items():
        if key == "nodes":
            continue
        name = key.replace("__", ".")
        given[name] = f"{name}={'null' if value is None else value}"
    run = compose(list(given.values()))
    with pytest.raises(InputError, match=said.replace(".", r"\.")):
        check_job(config, read_sky_cluster(str(cluster)), run)


def test_a_run_folder_in_a_volume_needs_no_copies(corpus, cluster, tmp_path):
    from launch.sky.check import check_job

    inside = corpus.folder / "runs" / "mine"
    run = compose(training(corpus, tmp_path, inside, checkpoint__copy_to=None))
    check_job(SkyConfig(str(cluster), nodes=2), read_sky_cluster(str(cluster)), run)


def test_clusters_that_cannot_be_rented_are_refused(tmp_path):
    path = tmp_path / "c.yaml"
    for text, said in (
        ("name: a\n", "the file has no key sky"),
        ("sky: {acelerators: H100:8}\n", "sky: acelerators is not a key"),
        ("sky: {}\n", "sky.accelerators is not set"),
        ("device: cpu\nsky: {volumes: {data: x}}\n", "sky.volumes=data: not an absolute path"),
    ):
        path.write_text(text)
        with pytest.raises(InputError, match=said):
            read_sky_cluster(str(path))


def test_a_job_is_launched_shown_guarded_and_cancelled(
    command, corpus, cluster, sky, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    run_dir = Path("runs/mine")
    words = ["launch", "sky", f"cluster={cluster}", "--", *training(corpus, tmp_path)]
    done = subprocess.run(
        [sys.executable, "-m", *words],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=limit(120),
    )
    assert done.returncode == 0, done.stderr
    calls = [json.loads(line) for line in (sky / "calls.jsonl").read_text().splitlines()]
    task_file = (run_dir / "sky" / "task.yaml").absolute()
    launched = ["jobs", "launch", "--yes", "--detach-run", "--name", "mine"]
    assert calls == [[*launched, "--secret", "MY_KEY", str(task_file)]]
    assert "secret-value" not in task_file.read_text()
    code = run_dir / "sky" / "code"
    assert {"pretrain", "setup.py", "constraints.txt"} <= {path.name for path in code.iterdir()}

    record = {"job_id": 7, "job_name": "mine", "status": "RECOVERING"}
    other = record | {"job_id": 8, "job_name": "another", "status": "RUNNING"}
    (sky / "queue.json").write_text(json.dumps([other, record]))
    (tmp_path / "copies" / "step_15").mkdir(parents=True)
    (tmp_path / "copies" / "step_15" / "manifest.json").write_text("{}")
    shown = read_status(run_dir)
    assert (shown.state, shown.jobs, shown.step, shown.total_steps) == ("recovering", "7", 15, 20)
    with pytest.raises(InputError, match="job 7 of this run is recovering"):
        check_idle(run_dir)
    with pytest.raises(InputError, match="which a file STOP does not reach"):
        stop(StopConfig(str(run_dir)))
    stop(StopConfig(str(run_dir), now=True))
    calls = [json.loads(line) for line in (sky / "calls.jsonl").read_text().splitlines()]
    assert calls[-1] == ["jobs", "cancel", "--yes", "7"]
    (sky / "queue.json").write_text(json.dumps([record | {"status": "CANCELLED"}]))
    assert jobs.active_jobs(run_dir) == []


def test_a_secret_that_is_not_set_is_refused(corpus, cluster, sky, monkeypatch):
    from launch.sky.submit import secrets_of

    monkeypatch.delenv("MY_KEY")
    with pytest.raises(InputError, match="MY_KEY: this environment variable is not set"):
        secrets_of(read_sky_cluster(str(cluster)))


def test_starts_without_progress_are_counted_over_new_nodes(tmp_path, capsys):
    url = f"file://{tmp_path}/copies"
    (tmp_path / "copies").mkdir()
    found = []
    for _ in range(4):
        node = tmp_path / "node"  # the folder of a node, which vanishes with it
        node.mkdir()
        found.append(ended(node, 1, 3, url))
        shutil.rmtree(node)
    assert found == [85, 85, 85, 1]
    assert "4 starts without a new checkpoint" in capsys.readouterr().out


def test_what_a_new_start_cannot_mend_is_final(tmp_path):
    for code, expected in ((0, 0), (85, 85), (75, 85), (87, 85), (2, 2), (65, 65), (88, 88)):
        folder = tmp_path / str(code)
        folder.mkdir()
        (folder / "outcome.json").write_text(json.dumps({"code": code, "cause": "x"}))
        assert ended(folder, code, 3) == expected


@pytest.mark.slow
@pytest.mark.parametrize("nodes", [1, 2])
def test_new_nodes_continue_the_run(corpus, cluster, tmp_path, nodes):
    """Runs the task's script as its nodes do, takes their disks away, and runs it on new ones.

    One node restores its checkpoint from the copies; two have their run folder in a volume.
    """
    volume = tmp_path / "volume"
    run_dir = Path("runs/mine") if nodes == 1 else volume / "mine"
    changes: dict[str, Any] = {"validation__every_steps": 0, "health__time_limit_minutes": 1e-6}
    changes["checkpoint__copy_to"] = f"file://{tmp_path}/copies" if nodes == 1 else None
    run = compose(training(corpus, tmp_path, run_dir, **changes))
    rented = read_sky_cluster(str(cluster))
    rented.sky.python = sys.executable
    config = SkyConfig(str(cluster), nodes=nodes, nproc=1)
    script = run_script(config, rented, run).replace(str(PORT), str(free_port()))
    first = started(script, nodes, tmp_path / "first")
    assert "resuming" not in first
    assert "resuming after step" in started(script, nodes, tmp_path / "second")


def started(script, nodes, folder):
    """Runs the script on each of the nodes, each with a home, and returns the first's output."""
    running = []
    for rank in range(nodes):
        home = folder / str(rank)
        code = home / "sky_workdir"
        code.mkdir(parents=True)
        for name in PACKAGES:
            (code / name).symlink_to(ROOT / name)
        environment = os.environ | {
            "HOME": str(home),
            "SKYPILOT_TASK_ID": "mine",
            "SKYPILOT_NUM_NODES": str(nodes),
            "SKYPILOT_NODE_RANK": str(rank),
            "SKYPILOT_NODE_IPS": "127.0.0.1\n" * nodes,
        }
        log = (folder / f"{rank}.log").open("w+")
        running.append(
            (log, subprocess.Popen(["bash", "-c", script], env=environment, stdout=log, stderr=log))
        )
    codes = [node.wait(timeout=limit(100)) for _, node in running]
    said = []
    for log, _ in running:
        log.seek(0)
        said.append(log.read())
        log.close()
    assert codes == [85, *[0] * (nodes - 1)], said[0]
    return said[0]
