"""Training on a real SLURM of two nodes; see `slurm_cluster`."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import sys
import tempfile
from pathlib import Path

import pytest

from launch.slurm.chain import ChainConfig, ChainStep, chain
from launch.slurm.submit import jobs_of
from tests.conftest import ROOT
from tests.launch.slurm_cluster import running
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
  signal_seconds: 30
  shutdown_seconds: 20
"""


@pytest.fixture(scope="module")
def slurm():
    folder = Path(tempfile.mkdtemp(prefix="slurm"))  # short: a socket's path has 108 characters
    folder.chmod(0o755)
    with running(folder) as cluster:
        (folder / "lab.yaml").write_text(CLUSTER)
        yield cluster
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def launch(command, slurm):
    """`python -m launch` against the cluster."""

    def run(*given: str, code: int = 0) -> str:
        done = command("launch", *given, **slurm.environment)
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    return run


@pytest.fixture
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


def same_run(one: Path, other: Path) -> None:
    """The two were trained alike, and ended with the same weights, to the bit."""
    assert ledger(one) == ledger(other)
    assert curve(one) == curve(other)
    assert weights(one) == weights(other)


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
def whole(command, slurm, corpus, tmp_path_factory):
    """A run of 60 steps on two nodes that nothing disturbs."""
    run_dir = tmp_path_factory.mktemp("whole") / "run"
    training = arguments(corpus.folder, run_dir, **LONG)[1:]
    cluster = f"cluster={slurm.folder}/lab.yaml"
    done = command("launch", "slurm", cluster, "nodes=2", "--", *training, **slurm.environment)
    assert done.returncode == 0, done.stderr
    job = re.findall(r"^job (\d+)", done.stdout, re.M)[0]
    assert slurm.wait_for(job, "COMPLETED", "FAILED") == "COMPLETED", log(run_dir)
    return job, run_dir


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


def test_preempted_saved_requeued_resumed(slurm, submit, whole, corpus, tmp_path):
    run_dir = tmp_path / "run"
    (job,) = submit(*arguments(corpus.folder, run_dir, **LONG)[1:])
    slurm.wait(lambda: steps(run_dir) > 4, "five steps")
    urgent = slurm.ask(
        *("sbatch", "--parsable", "-p", "high", "-N", "2", "--exclusive", "-o", "/dev/null"),
        *("--wrap", "sleep 1"),
    )
    slurm.wait_for(urgent, "COMPLETED")
    assert slurm.wait_for(job, "COMPLETED", "FAILED") == "COMPLETED", log(run_dir)
    assert slurm.job(job)["Restarts"] == "1"
    stopped, resumed = events(run_dir, "stop")[0], events(run_dir, "resume")[0]
    assert stopped["cause"].startswith("SIGTERM on rank")
    assert stopped["step"] == resumed["step"] < STEPS
    same_run(run_dir, whole[1])


def test_the_time_limit_s_signal_reaches_the_ranks(slurm, submit, whole, corpus, tmp_path):
    """SLURM looks at limits twice a minute: the signal is sent as it would be."""
    run_dir = tmp_path / "run"
    (job,) = submit(*arguments(corpus.folder, run_dir, **LONG)[1:])
    assert "USR1@30" in (run_dir / "slurm" / "job.sbatch").read_text()
    slurm.wait(lambda: steps(run_dir) > 4, "five steps")
    slurm.ask("scancel", "--signal=USR1", job)
    assert slurm.wait_for(job, "COMPLETED", "FAILED") == "COMPLETED", log(run_dir)
    assert slurm.job(job)["Restarts"] == "1"
    assert events(run_dir, "stop")[0]["cause"].startswith("SIGUSR1 on rank")
    same_run(run_dir, whole[1])


def test_a_lost_node(slurm, submit, whole, corpus, tmp_path):
    run_dir = tmp_path / "run"
    (job,) = submit(*arguments(corpus.folder, run_dir, **LONG)[1:])
    slurm.wait(lambda: (run_dir / "checkpoints" / "latest").exists(), "a checkpoint")
    slurm.lose_node("n2")
    slurm.wait(lambda: "PENDING" in slurm.job(job)["JobState"], "the job to wait again")
    slurm.start_node("n2")
    assert slurm.wait_for(job, "COMPLETED", "FAILED") == "COMPLETED", log(run_dir)
    assert int(slurm.job(job)["Restarts"]) >= 1
    same_run(run_dir, whole[1])


def test_a_sweep_of_two_by_two(slurm, submit, corpus, tmp_path):
    training = arguments(corpus.folder, tmp_path / "sweep", stop_after=2)[1:]
    jobs = submit(
        *training, "--multirun", "optim.learning_rate=1e-3,1e-2", "seed=0,1",
        options=("nodes=1", "node_check=false"),
    )  # fmt: skip
    assert len(set(jobs)) == 4
    for job in jobs:
        assert slurm.wait_for(job, "COMPLETED", "FAILED") == "COMPLETED"
    runs = sorted(path.parent for path in (tmp_path / "sweep").rglob("metrics.jsonl"))
    assert [run.name for run in runs] == [
        f"learning_rate_{rate}-seed_{seed}" for rate in ("0.001", "0.01") for seed in (0, 1)
    ]
    assert len({curve(run)[1] for run in runs}) == 4


def test_status_and_stop(slurm, launch, submit, corpus, tmp_path):
    run_dir = tmp_path / "run"
    training = arguments(corpus.folder, run_dir, **LONG)[1:]
    options = ("nodes=1", "node_check=false")
    (job,) = submit(*training, options=options)
    slurm.wait(lambda: steps(run_dir) > 1, "two steps")
    said = launch("status", f"runs={tmp_path}")
    assert re.search(rf"run +running +\d+/{STEPS} ", said), said
    again = launch("slurm", f"cluster={slurm.folder}/lab.yaml", "--", *training, code=2)
    assert f"has job {job} already (running)" in again
    launch("stop", f"run={run_dir}")
    assert slurm.wait_for(job, "COMPLETED", "FAILED") == "FAILED"
    assert events(run_dir, "stop")[0]["step"] < STEPS
    assert slurm.job(job)["Restarts"] == "0"
    assert "ended with 85" in launch("status", f"runs={run_dir}")


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


def test_a_named_node_is_excluded_by_the_requeue(slurm, tmp_path):
    python = f"env PYTHONPATH={ROOT} {sys.executable} -m launch.slurm.requeue {tmp_path}"
    (tmp_path / "exclude").write_text("n1\n")
    job = slurm.ask(
        *("sbatch", "--parsable", "--requeue", "-N", "1", "-w", "n1", "--open-mode=append"),
        *("-o", str(tmp_path / "log"), "--wrap"),
        f'[ "${{SLURM_RESTART_COUNT:-0}}" = 1 ] && exit 0; {python}; sleep 60; exit 1',
    )
    slurm.wait(lambda: slurm.job(job)["ExcNodeList"] == "n1", "n1 to be excluded", 60)
    slurm.ask("scontrol", "update", f"JobId={job}", "ReqNodeList=")
    assert slurm.wait_for(job, "COMPLETED", "FAILED") == "COMPLETED", (tmp_path / "log").read_text()
    assert slurm.job(job)["NodeList"] == "n2"
