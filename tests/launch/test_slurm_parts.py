"""Parts that need no SLURM: the job's text, the points of a sweep, the verdict, the node check."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from conf.errors import InputError
from launch.slurm.chain import ChainConfig
from launch.slurm.manage import StopConfig, read_status, stop
from launch.slurm.node_check import Node, find_problems
from launch.slurm.script import sbatch_options
from launch.slurm.settings import SlurmConfig, read_cluster
from launch.slurm.sweep import sweep_points
from launch.slurm.verdict import verdict
from tests.conftest import ROOT

CLUSTER = """\
name: big
gpus_per_node: 8
slurm:
  partition: train
  time: 2-00:00:00
  cpus_per_task: 96
  modules: [cuda/12.8]
  env: {NCCL_SOCKET_IFNAME: "ib0 b"}
  container: /images/torch.sqsh
  mounts: [/data]
"""


@pytest.fixture
def cluster(tmp_path):
    path = tmp_path / "big.yaml"
    path.write_text(CLUSTER)
    return path


def test_a_dry_run_prints_a_job_that_bash_can_read(command, cluster, tmp_path):
    done = command(
        *("launch", "slurm", f"cluster={cluster}", "nodes=4", "min_nodes=2", "--dry-run"),
        *("--", "model=danube_1_8b", f"run_dir={tmp_path / 'run'}"),
    )
    assert done.returncode == 0, done.stderr
    for line in (
        f"# python -m launch slurm cluster={cluster} nodes=4 min_nodes=2 --dry-run -- "
        f"model=danube_1_8b run_dir={tmp_path / 'run'}",
        "#SBATCH --nodes=2-4",
        "#SBATCH --gpus-per-node=8",
        "#SBATCH --partition=train",
        "#SBATCH --time=2-00:00:00",
        "#SBATCH --signal=USR1@300",
        "#SBATCH --requeue",
        "#SBATCH --open-mode=append",
        "module load cuda/12.8",
        "export NCCL_SOCKET_IFNAME='ib0 b'",
        "export OMP_NUM_THREADS=12",
    ):
        assert line in done.stdout.splitlines(), line
    mounts = f"/data,{ROOT}:{ROOT},{tmp_path}/run:{tmp_path}/run"
    container = f"--container-image=/images/torch.sqsh --container-mounts={mounts} "
    assert f"{container}--container-workdir={ROOT} python -m torch.distributed.run" in done.stdout
    assert "verdict=$(python3 -m launch.slurm.verdict" in done.stdout
    assert "#SBATCH --ntasks-per-node" not in done.stdout  # it makes SLURM take the fewest nodes
    assert not (tmp_path / "run").exists()
    assert subprocess.run(["bash", "-n"], input=done.stdout, text=True).returncode == 0


def test_bad_input_is_one_sentence(command, tmp_path):
    wrong = tmp_path / "wrong.yaml"
    for text, said in (
        ("slurm: {partitoin: x}", "slurm: partitoin is not a key of this config (did you mean"),
        ("gpus_pr_node: 4", "gpus_pr_node is not a key of this config (did you mean 'gpus_per_no"),
        ("gpus_per_node: eight", "gpus_per_node: value 'eight' of type 'str' could not be conver"),
        ("a: [b", "wrong.yaml is not valid YAML (while parsing a flow sequence"),
        ("", "wrong.yaml: expected lines of key: value"),
        (
            "slurm: {signal_seconds: 9}",
            "slurm.shutdown_seconds=240: expected 1 to slurm.signal_seconds",
        ),
    ):
        wrong.write_text(text)
        with pytest.raises(InputError) as refused:
            read_cluster(str(wrong))
        assert said in str(refused.value)
    for given, said in (
        (["cluster=h10"], "did you mean 'h100'?"),
        (["cluster=h100", "nodes=0"], "nodes=0: expected 1 or more"),
        (["cluster=h100", "nodes=2", "min_nodes=3"], "min_nodes=3: expected 1 to nodes=2"),
    ):
        done = command("launch", "slurm", *given, "dry_run=true", "--", "model=demo_12m")
        assert done.returncode == 2, (given, done.stderr)
        assert said in done.stderr
        assert done.stderr.count("\n") == 1
    for given, said in (
        (["chain", "cluster=h100"], "name has no value. Give name=..."),
        (["slurm", "cluster=h100", "--dryrun"], "unrecognized arguments: --dryrun"),
        (["slurm", "cluster=h100", "model=demo_12m"], "Put it after `--`"),
        (["chain", "cluster=h100", "name=x", "only=[lm_eval]", "tasks=x"], "Add step export"),
    ):
        done = command("launch", *given)
        assert done.returncode == 2, (given, done.stderr)
        assert said in done.stderr
        assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "time",
    ["12:00:00", "48:00:00", "08:00:00", "12:30", "1:00:00", "2-00:00:00", "90", "0130", "1-12"],
)
def test_a_time_limit_is_what_stands_there(time, tmp_path):
    """In the file of a cluster as on the command line; YAML takes most of these for numbers."""
    path = tmp_path / "my.yaml"
    path.write_text(f"gpus_per_node: 8\nslurm:\n  time: {time}\n")
    cluster = read_cluster(str(path))
    assert f"time={time}" in sbatch_options(SlurmConfig(str(path)), cluster)
    assert f"time={time}" in sbatch_options(SlurmConfig(str(path), time=time), cluster)


def test_texts_of_a_cluster_stay_as_they_are(tmp_path):
    path = tmp_path / "my.yaml"
    path.write_text(
        "gpus_per_node: 1_0\ngpu_memory_gib: 8e1\nmatmul: [0.5, 0.6]\nslurm:\n  account: 0123\n"
        "  qos: no\n  partition: 1e3\n  mem: null\n  cpus_per_task: 012\n"
        "  env: {A: on, B: 010, C: 1_000, D: 2026-11-30, E: 1:30}\n"
    )
    cluster = read_cluster(str(path))
    assert (cluster.gpus_per_node, cluster.gpu_memory_gib) == (10, 80)
    slurm = cluster.slurm
    assert (slurm.account, slurm.qos, slurm.partition, slurm.mem) == ("0123", "no", "1e3", None)
    assert slurm.cpus_per_task == 12
    assert list(slurm.env.values()) == ["on", "010", "1_000", "2026-11-30", "1:30"]


@pytest.mark.parametrize("time", ["12h", "1:00:00:00", "2 days", "-5", "1.5"])
def test_what_is_no_time_limit(time, tmp_path):
    path = tmp_path / "my.yaml"
    path.write_text(f"slurm:\n  time: {time}\n")
    with pytest.raises(InputError, match=rf"slurm\.time={time}: not a time limit of SLURM"):
        read_cluster(str(path))
    for made in (SlurmConfig, ChainConfig):
        with pytest.raises(InputError, match=rf"time={time}: not a time limit .* 12:00:00"):
            made(time=time)


def test_a_sweep_is_one_on_either_side(command, cluster):
    for given in (("--multirun", "--", "seed=0,1"), ("--", "-m", "seed=0,1")):
        done = command("launch", "slurm", f"cluster={cluster}", "--dry-run", *given)
        assert done.returncode == 0, done.stderr
        names = [line for line in done.stdout.splitlines() if "--job-name" in line]
        assert names == [f"#SBATCH --job-name=sweep-seed_{seed}" for seed in (0, 1)]


def test_a_chain_without_a_step_evaluates_what_there_is(command, tmp_path):
    answers = tmp_path / "a.jsonl"
    answers.write_text('{"prompt": "1 + 1?", "completion": "2"}\n')
    given = ("cluster=h100", "name=x", f"out={tmp_path}", f"answers={answers}", "tasks=hellaswag")
    steps = "only=[export,sft,lm_eval]"
    words = "more.sft=epochs=2 learning_rate=1e-5"
    done = command("launch", "chain", *given, steps, words, "--dry-run")
    assert done.returncode == 0, done.stderr
    assert f"out={tmp_path}/export/tuned epochs=2 learning_rate=1e-5\n" in done.stdout
    assert f"models.tuned={tmp_path}/export/tuned" in done.stdout
    assert "models.chat" not in done.stdout
    assert "finetune dpo" not in done.stdout
    for wrong, said in (
        (
            "more.sft=epoch=2",
            "step sft: epoch is not a key of this config (did you mean 'epochs'?)",
        ),
        ("more.export=out", "step export: "),
        ("more.export=dtype=float8", "step export: dtype=float8: unknown choice (did you mean"),
        ("tasks=hellaswagg", "step lm_eval: tasks=hellaswagg: lm-eval has no such task (did you m"),
        ("tasks=local", "step lm_eval: tasks=local: requires task_folder. Give the folder"),
        ("answers=b.jsonl", "step sft: data=b.jsonl: no such file or folder. Give a jsonl"),
    ):
        refused = command("launch", "chain", *given, steps, wrong, "--dry-run")
        assert refused.returncode == 2
        assert said in refused.stderr
        assert refused.stderr.count("\n") == 1


def test_a_sweep_is_the_product_of_its_choices():
    made = sweep_points(
        ["-m", "name=s", "run_dir=runs/s", "optim.learning_rate=1e-3,1e-2", "seed=0,1"]
    )
    assert len(made) == 4
    assert made[1] == [
        *("optim.learning_rate=0.001", "seed=1"),
        *("name=s-learning_rate_0.001-seed_1", "run_dir=runs/s/learning_rate_0.001-seed_1"),
    ]
    assert sweep_points(["seed=1"]) == [["seed=1"]]
    with pytest.raises(InputError, match="no key has several values"):
        sweep_points(["--multirun", "seed=1"])


def test_the_verdict(tmp_path):
    def ended(code: int, cause: str = "why") -> None:
        (tmp_path / "outcome.json").write_text(json.dumps({"code": code, "cause": cause}))

    assert verdict(tmp_path, 0, 3) == "done"
    for code, said in ((85, "again"), (75, "again"), (2, "failed"), (86, "failed"), (88, "failed")):
        ended(code)
        assert verdict(tmp_path, 1, 3).startswith(f"{said}: why")


def test_the_script_around_a_container_needs_no_packages(tmp_path):
    """`-S` is a Python without any."""
    command = [sys.executable, "-S", "-m", "launch.slurm.verdict", str(tmp_path), "137", "3"]
    said = subprocess.run(
        command, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=True
    )
    assert said.stdout == "again: the run recorded no cause\n"
    requeue = [sys.executable, "-S", "-c", "import launch.slurm.requeue"]
    subprocess.run(requeue, env={"PYTHONPATH": str(ROOT)}, check=True)


def test_a_node_without_the_gpus_is_named_and_nothing_is_timed(command, tmp_path):
    """NCCL's collectives would wait for its ranks."""
    program = ("launch.slurm.node_check", str(tmp_path), "2", "80")
    done = command(*program, processes=2, SLURMD_NODENAME="n1", CUDA_VISIBLE_DEVICES="")
    assert "rank 0 exitcode  : 75" in done.stderr
    assert "node n1: 0 GPUs, not timed, 0 GPUs instead of 2" in done.stdout
    assert (tmp_path / "exclude").read_text() == "n1\n"
    (node,) = json.loads((tmp_path / "nodes.json").read_text())["nodes"]
    assert node["gpus"] == node["matmul_seconds"] == 0


def test_the_verdict_tells_what_the_node_check_found(tmp_path):
    (tmp_path / "slurm").mkdir()
    nodes = tmp_path / "slurm" / "nodes.json"
    nodes.write_text(json.dumps({"problems": {"n2": "other code"}}))
    assert verdict(tmp_path, 1, 3) == "again: the node check excluded n2"
    nodes.write_text(json.dumps({"problems": {}}))
    assert verdict(tmp_path, 137, 3) == "again: the run recorded no cause"


def test_starts_without_progress_come_to_an_end(tmp_path):
    found = [verdict(tmp_path, 137, 2).split(":")[0] for _ in range(3)]
    assert found == ["again", "again", "failed"]
    saved = tmp_path / "checkpoints" / "step_5" / "manifest.json"
    saved.parent.mkdir(parents=True)
    saved.touch()
    assert verdict(tmp_path, 137, 2).startswith("again")


@pytest.fixture
def queue(tmp_path, monkeypatch):
    """A chain's folder, and what SLURM is to say of its jobs."""
    run_dir, programs = tmp_path / "run", tmp_path / "bin"
    (run_dir / "slurm").mkdir(parents=True)
    programs.mkdir()
    steps = {"1": "tokenize", "2": "job", "3": "export", "4": "report"}
    lines = [json.dumps({"job": job, "script": f"{step}.sbatch"}) for job, step in steps.items()]
    (run_dir / "slurm" / "jobs.jsonl").write_text("\n".join(lines) + "\n")

    def says(states: dict[str, str]) -> Path:
        for job in steps:
            (programs / job).write_text(states.get(job, ""))
        return run_dir

    (programs / "squeue").write_text(f'#!/bin/sh\ncat {programs}/"$3"\n')
    (programs / "scancel").write_text(f'#!/bin/sh\necho "$@" > {programs}/cancelled\n')
    for name in ("squeue", "scancel"):
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    return says


WAITING = {"3": "PENDING\n", "4": "PENDING\n"}


@pytest.mark.parametrize(
    ("states", "state", "jobs"),
    [
        (
            {"1": "PENDING\nRUNNING\n", "2": "PENDING\n", **WAITING},
            "tokenize running",
            "1, 2, 3, 4",
        ),
        ({"2": "RUNNING\n", **WAITING}, "running", "2, 3, 4"),
        (WAITING, "export pending", "3, 4"),
        ({}, "waiting", ""),
    ],
)
def test_the_state_of_a_chain_is_that_of_the_step_at_work(queue, states, state, jobs):
    found = read_status(queue(states))
    assert (found.state, found.jobs) == (state, jobs)


def test_stop_ends_a_training_gracefully_and_cancels_the_rest(queue, tmp_path):
    run_dir = queue({"2": "RUNNING\n", **WAITING})
    stop(StopConfig(run=str(run_dir)))
    assert (tmp_path / "bin" / "cancelled").read_text() == "3 4\n"
    assert (run_dir / "STOP").exists()
    (run_dir / "STOP").unlink()
    stop(StopConfig(run=str(queue({"1": "RUNNING\n", **WAITING}))))
    assert (tmp_path / "bin" / "cancelled").read_text() == "1 3 4\n"
    assert not (run_dir / "STOP").exists()
    with pytest.raises(InputError, match="the folder contains no run"):
        stop(StopConfig(run=str(tmp_path / "bin")))


def node(name: str, **changes) -> Node:
    usual: dict = {
        "gpus": 8,
        "gpu_memory_gib": 79.1,
        "free_gib": 100.0,
        "clock": 1000.0,
        "code": "c",
        "packages": {"torch": "2.13.0"},
        "matmul_seconds": 0.002,
        "all_reduce_seconds": 0.001,
    }
    return Node(name, **(usual | changes))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"gpus": 7}, "7 GPUs instead of 8"),
        ({"gpu_memory_gib": 39.0}, "39 GiB per GPU instead of 80"),
        ({"free_gib": 0.5}, "0.5 GiB free"),
        ({"clock": 1060.0}, "clock skew +60 s from the median node"),
        ({"code": "d"}, "different code than the other nodes"),
        ({"packages": {"torch": "2.12.0"}}, "torch 2.12.0 instead of 2.13.0"),
        ({"matmul_seconds": 0.004}, "matmul takes 4.0 ms instead of 2.0"),
        ({"all_reduce_seconds": 0.004}, "all_reduce takes 4.0 ms instead of 1.0"),
    ],
)
def test_a_wrong_or_slow_node_is_named(change, said):
    nodes = [node("a"), node("b", **change), node("c")]
    found = find_problems(nodes, 8, 80, cuda=True)
    assert list(found) == ["b"]
    assert said in found["b"]
    assert find_problems([node("a"), node("c")], 8, 80, cuda=True) == {}
