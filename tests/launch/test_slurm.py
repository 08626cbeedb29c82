"""Training on a real SLURM of two nodes; see `slurm_cluster`."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

import pytest

from launch.slurm.chain import ChainConfig, ChainStep, chain
from launch.slurm.submit import jobs_of
from tests.conftest import ROOT
from tests.launch.slurm_cluster import running, signalled
from tests.runs import arguments, ledger, records

STEPS = 60
LONG = {
    "validation__every_steps": 0,
    "checkpoint__every_steps": 10,
    "recipe__stages__short__tokens": 2048 * (STEPS - 10),
}
CLUSTER = """\
name: lab
device: cpu
gpus_per_node: 1
slurm:
  cpus_per_task: 1
  time: "30"
  signal_seconds: 180
  shutdown_seconds: 90
  python: {python}
"""
# On the second node the code may become another: then that node is wrong.
PYTHON = f"""\
#!/bin/bash
folder=$(dirname "$0")
[ "$SLURMD_NODENAME" = n2 ] && [ -e "$folder/other" ] && export PYTHONPATH=$folder/other
exec {sys.executable} "$@"
"""
QUICK = ("nodes=1", "node_check=false")


@pytest.fixture(scope="module")
def slurm():
    folder = Path(tempfile.mkdtemp(prefix="slurm"))  # short: a socket's path has 108 characters
    folder.chmod(0o755)
    with running(folder) as cluster:
        (folder / "lab.yaml").write_text(CLUSTER.format(python=folder / "python"))
        (folder / "python").write_text(PYTHON)
        (folder / "python").chmod(0o755)
        yield cluster
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def launch(command, slurm):
    """`python -m launch` against the cluster."""

    def run(*given: str, code: int = 0) -> str:
        done = command("launch", *given, **slurm.environment)
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    return run


@pytest.fixture(scope="module")
def submit(launch, slurm):
    """Submits a training job; returns the ids."""

    def run(*given: str, options: tuple[str, ...] = ("nodes=2",)) -> list[str]:
        said = launch("slurm", f"cluster={slurm.folder}/lab.yaml", *options, "--", *given)
        return re.findall(r"^job (\d+)", said, re.M)

    return run


def log(run_dir: Path) -> str:
    return (run_dir / "slurm" / "job.log").read_text()


def steps(run_dir: Path) -> int:
    return len(records(run_dir)) if (run_dir / "metrics.jsonl").exists() else 0


def curve(run_dir: Path) -> list[tuple[int, float, float]]:
    return [(r["step"], r["loss"], r["grad_norm"]) for r in records(run_dir)]


def weights(run_dir: Path) -> list[tuple[str, str]]:
    """Digests of the shards of the last checkpoint, without torch's list of them."""
    newest = max(run_dir.glob("checkpoints/step_*"), key=lambda path: int(path.name[5:]))
    return sorted(
        (path.name, hashlib.sha256(path.read_bytes()).hexdigest())
        for path in newest.rglob("*.distcp")
    )


def events(run_dir: Path, *names: str) -> list[dict]:
    return [r for r in records(run_dir, "event") if r["event"] in names]


@pytest.fixture(scope="module")
def whole(slurm, submit, corpus, tmp_path_factory):
    """A run of 60 steps on two nodes that nothing disturbs, and its job."""
    run_dir = tmp_path_factory.mktemp("whole") / "run"
    (job,) = submit(*arguments(corpus.folder, run_dir, **LONG)[1:])
    assert slurm.wait_for(job, "COMPLETED", "FAILED") == "COMPLETED", log(run_dir)
    return job, run_dir


@pytest.fixture(scope="module")
def limited(slurm, submit, corpus, tmp_path_factory):
    """The same run with a time limit of four minutes, of which SLURM takes three for the signal.
    Its ranks are stopped after a few steps: the signal signalled for them."""
    run_dir = tmp_path_factory.mktemp("limited") / "run"
    options = ("nodes=2", "time=4", "node_check=false")
    (job,) = submit(*arguments(corpus.folder, run_dir, **LONG)[1:], options=options)
    slurm.wait(lambda: steps(run_dir) > 4, "five steps")
    with ExitStack() as stack:
        ranks = stack.enter_context(slurm.frozen(job))
        assert len(ranks) == 2
        yield job, run_dir, ranks, stack.close


def test_two_nodes_train_as_one_job(slurm, whole):
    job, run_dir = whole
    assert slurm.job(job)["NodeList"] == "n[1-2]"
    assert [record["step"] for record in records(run_dir)] == list(range(1, STEPS + 1))
    assert [start["dp_size"] for start in events(run_dir, "start", "resume")] == [2]
    assert (run_dir / "slurm" / "code" / "pretrain" / "trainer.py").exists()
    assert len(weights(run_dir)) == 2
    nodes = json.loads((run_dir / "slurm" / "nodes.json").read_text())
    assert {node["name"] for node in nodes["nodes"]} == {"n1", "n2"}
    assert nodes["problems"] == {}


def test_a_sweep_of_two_by_two(slurm, limited, submit, corpus, tmp_path):
    """On the cores that the run which signalled for its signal leaves."""
    training = arguments(corpus.folder, tmp_path / "sweep", stop_after=2)[1:]
    choices = ("optim.learning_rate=1e-3,1e-2", "seed=0,1")
    jobs = submit(*training, "--multirun", *choices, options=QUICK)
    assert len(set(jobs)) == 4
    for job in jobs:
        assert slurm.wait_for(job, "COMPLETED", "FAILED") == "COMPLETED"
    runs = sorted(path.parent for path in (tmp_path / "sweep").rglob("metrics.jsonl"))
    assert [run.name for run in runs] == [
        f"learning_rate_{rate}-seed_{seed}" for rate in ("0.001", "0.01") for seed in (0, 1)
    ]
    assert len({curve(run)[1] for run in runs}) == 4


def test_time_limit_preemption_and_a_lost_node_change_nothing(slurm, limited, whole):
    job, run_dir, stopped, thaw = limited

    def again() -> None:
        slurm.wait(lambda: slurm.job(job)["JobState"] == "PENDING", "the job to wait again")

    # SLURM's own signal ahead of the limit.
    slurm.wait(lambda: all(signalled(pid, signal.SIGUSR1) for pid in stopped), "SIGUSR1")
    thaw()
    again()
    slurm.ask("scontrol", "update", f"JobId={job}", "TimeLimit=30")
    first = events(run_dir, "stop")[-1]
    assert first["cause"].startswith("SIGUSR1 on rank")

    # A job of a higher priority.
    slurm.wait(lambda: steps(run_dir) > first["step"], "another step", job=job)
    with slurm.frozen(job) as ranks:
        urgent = slurm.ask(
            *("sbatch", "--parsable", "-p", "high", "-N", "2", "--exclusive", "-o", "/dev/null"),
            *("--wrap", "true"),
        )
        slurm.wait(lambda: all(signalled(pid, signal.SIGTERM) for pid in ranks), "SIGTERM")
    slurm.wait_for(urgent, "COMPLETED")
    second = events(run_dir, "stop")[-1]
    assert second["cause"].startswith("SIGTERM on rank")

    # A node that is gone.
    slurm.wait(lambda: steps(run_dir) > second["step"], "another step", job=job)
    with slurm.frozen(job):
        slurm.lose_node("n2")
    again()
    slurm.start_node("n2")

    assert slurm.wait_for(job, "COMPLETED", "FAILED") == "COMPLETED", log(run_dir)
    assert int(slurm.job(job)["Restarts"]) == 3
    resumed = [event["step"] for event in events(run_dir, "resume")]
    assert resumed[:2] == [first["step"], second["step"]]
    assert resumed == sorted(resumed)
    assert len(resumed) == 3
    assert ledger(run_dir) == ledger(whole[1])
    assert curve(run_dir) == curve(whole[1])
    assert weights(run_dir) == weights(whole[1])


def test_a_killed_torchrun_a_wrong_node_fewer_nodes_status_stop(
    slurm, launch, submit, whole, corpus, tmp_path
):
    run_dir = tmp_path / "run"
    training = arguments(corpus.folder, run_dir, **LONG)[1:]
    slurm.wait(slurm.is_idle, "both nodes to be idle")
    (job,) = submit(*training, options=("nodes=2", "min_nodes=1"))
    slurm.wait((run_dir / "checkpoints" / "latest").exists, "a checkpoint")
    with slurm.frozen(job):
        shutil.copytree(run_dir / "slurm" / "code", slurm.folder / "other")
        with (slurm.folder / "other" / "model" / "config.py").open("a") as file:
            file.write("# changed\n")
        (torchrun,) = slurm.torchrun("n2")
        os.kill(torchrun, signal.SIGKILL)

    # The node check names the second node, and the job comes back without it.
    slurm.wait(lambda: slurm.job(job)["ExcNodeList"] == "n2", "n2 to be excluded", job=job)
    assert "other code" in log(run_dir)
    before = curve(run_dir)
    slurm.wait(lambda: events(run_dir, "resume"), "the run to resume", job=job)
    resumed = events(run_dir, "resume")[0]
    slurm.wait(lambda: steps(run_dir) > resumed["step"], "another step")
    with slurm.frozen(job):
        assert resumed["dp_size"] == 1
        assert slurm.job(job)["NodeList"] == "n1"
        said = launch("status", f"runs={tmp_path}")
        assert re.search(rf"run +running +\d+/{STEPS} .* 1 +{run_dir}/slurm/job.log", said), said
        again = launch("slurm", f"cluster={slurm.folder}/lab.yaml", "--", *training, code=2)
        assert f"has job {job} already (running)" in again
        launch("stop", f"run={run_dir}")
    assert slurm.wait_for(job, "COMPLETED", "FAILED") == "FAILED"
    assert "ended with 85" in launch("status", f"runs={run_dir}")
    assert resumed["step"] < events(run_dir, "stop")[-1]["step"] < STEPS
    done = curve(run_dir)
    assert done[: resumed["step"]] == before[: resumed["step"]]
    for one, other in zip(done, curve(whole[1]), strict=False):
        assert one == pytest.approx(other, rel=1e-3)  # the same gradients, summed otherwise


def test_a_step_that_fails_ends_the_chain(slurm, monkeypatch, tmp_path):
    """An array, a step after it, one that fails, and one that then must not run."""
    monkeypatch.setenv("SLURM_CONF", slurm.environment["SLURM_CONF"])

    def step(name: str, code: str, array: int = 0) -> ChainStep:
        made = str(tmp_path / name)
        command = f'timeit -n1 -r1 "{code}; open({made!r}, {"a"!r}).write({"x"!r})"'
        return ChainStep(title=name, command=command, makes=made, array=array)

    steps = {
        "array": step("array", "pass", array=3),
        "next": step("next", f"assert len(open({str(tmp_path / 'array')!r}).read()) == 3"),
        "broken": step("broken", "1/0"),
        "last": step("last", "pass"),
    }
    cluster, out = f"{slurm.folder}/lab.yaml", tmp_path / "run"
    chain(ChainConfig(name="chain", cluster=cluster, data="", out=str(out), steps=steps))
    jobs = jobs_of(out)
    assert len(jobs) == 4
    slurm.wait_for(jobs[2], "FAILED")
    slurm.wait(lambda: not slurm.ask("squeue", "-h"), "no jobs")
    assert slurm.job(jobs[1])["JobState"] == "COMPLETED"
    assert slurm.job(jobs[3])["JobState"] == "CANCELLED"
    assert (tmp_path / "next").exists()
    assert not (tmp_path / "last").exists()


def test_the_scripts_to_edit_by_hand(slurm, corpus, tmp_path):
    run_dir = tmp_path / "run"
    job = slurm.ask(
        *("sbatch", "--parsable", "--nodes=2", "--gpus-per-node=0", "--cpus-per-task=1"),
        *("-D", str(ROOT), "-o", str(tmp_path / "log"), "--time=30"),
        f"--export=ALL,PYTHON={sys.executable},RUN_DIR={run_dir}",
        "launch/slurm/pretrain.sbatch",
        *arguments(corpus.folder, run_dir, stop_after=2)[1:],
    )
    assert slurm.wait_for(job, "COMPLETED", "FAILED") == "COMPLETED", (tmp_path / "log").read_text()
    assert [start["dp_size"] for start in events(run_dir, "start")] == [2]
    assert steps(run_dir) == 2
