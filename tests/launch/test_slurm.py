"""Training on a real SLURM of two nodes, see `slurm_cluster`.

It is one test, so that there is one cluster for any distribution of tests over workers.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from launch.slurm.chain import ChainConfig, ChainStep, chain
from launch.slurm.manage import read_status
from tests.conftest import ROOT, fresh_command
from tests.launch.slurm_cluster import Cluster, running, signalled
from tests.runs import SETTINGS, arguments, ledger, records

pytestmark = pytest.mark.slow

STEPS = 40
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
  signal_seconds: 840
  shutdown_seconds: 90
  python: {python}
"""
SIGNAL_NOW = 15
"""A time limit in minutes: a job that has run for one minute (15 minutes less `signal_seconds`)
gets SLURM's signal as soon as SLURM checks the limits, every half minute."""
# The second node may get another numpy: then that node is wrong.
PYTHON = f"""\
#!/bin/bash
other=$(dirname "$0")/other
[ "$SLURMD_NODENAME" = n2 ] && [ -e "$other" ] && export PYTHONPATH=$other:$PYTHONPATH
exec {sys.executable} "$@"
"""
QUICK = ("nodes=1", "node_check=false")
OVER = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT")


@dataclass
class Lab:
    """The cluster, a folder for runs, and a corpus."""

    slurm: Cluster
    folder: Path
    corpus: str

    def launch(self, *given: str, code: int = 0) -> str:
        """`python -m launch`."""
        done = fresh_command("launch", *given, SLURM_CONF=str(self.slurm.conf))
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    def submit(self, *given: str, options: tuple[str, ...] = ("nodes=2",)) -> list[str]:
        """Submits training jobs; returns the ids."""
        cluster = f"cluster={self.slurm.folder}/lab.yaml"
        return re.findall(
            r"^job (\d+)", self.launch("slurm", cluster, *options, "--", *given), re.M
        )

    def training(self, name: str, **changes: object) -> list[str]:
        """Overrides of a run."""
        return arguments(self.corpus, self.folder / name, **changes)[1:]

    def ended(self, job: str) -> str:
        """Waits for the end of a job; returns its state."""
        state = self.slurm.wait_for(job, *OVER)
        if state != "COMPLETED":  # shown where a test fails
            print(self.slurm.said(job))
        return state


@contextmanager
def laboratory(folder: Path, corpus: str) -> Iterator[Lab]:
    home = Path(tempfile.mkdtemp(prefix="slurm"))  # short: a socket's path has 108 characters
    home.chmod(0o755)
    with running(home) as cluster:
        (home / "lab.yaml").write_text(CLUSTER.format(python=home / "python"))
        (home / "python").write_text(PYTHON)
        (home / "python").chmod(0o755)
        yield Lab(cluster, folder, corpus)
    shutil.rmtree(home, ignore_errors=True)


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


def submitted(run_dir):
    """Returns the ids of all jobs of a run, oldest first."""
    lines = (run_dir / "slurm" / "jobs.jsonl").read_text().splitlines()
    return [json.loads(line)["job"] for line in lines]


@pytest.mark.timeout(1200)
def test_a_cluster_s_day(corpus, tmp_path, monkeypatch, subtests):
    """Undisturbed: `whole`.

    Disturbed: `limited`, whose ranks are stopped for SLURM's signal ahead of the time limit while
    small jobs run.
    """
    with laboratory(tmp_path, str(corpus.folder)) as lab:
        monkeypatch.setenv("SLURM_CONF", lab.slurm.environment["SLURM_CONF"])
        with subtests.test("two nodes train as one job"):
            two_nodes_train_as_one_job(lab)
        with subtests.test("preemption"), limited(lab) as (job, ranks):
            with subtests.test("small jobs"):
                small_jobs(lab, job)
            time_limit_preemption_and_a_lost_node_change_nothing(lab, job, ranks)
        with subtests.test("a killed torchrun"):
            a_killed_torchrun_a_wrong_node_fewer_nodes_status_stop(lab)


def two_nodes_train_as_one_job(lab: Lab) -> None:
    run_dir = lab.folder / "whole"
    (job,) = lab.submit(*lab.training("whole", **LONG))
    assert lab.ended(job) == "COMPLETED", log(run_dir)
    assert lab.slurm.job(job)["NodeList"] == "n[1-2]"
    assert [record["step"] for record in records(run_dir)] == list(range(1, STEPS + 1))
    assert [start["dp_size"] for start in events(run_dir, "start", "resume")] == [2]
    assert (run_dir / "slurm" / "code" / "pretrain" / "trainer.py").exists()
    assert len(weights(run_dir)) == 2
    nodes = json.loads((run_dir / "slurm" / "nodes.json").read_text())
    assert {node["name"] for node in nodes["nodes"]} == {"n1", "n2"}
    assert nodes["problems"] == {}


@contextmanager
def limited(lab: Lab) -> Iterator[tuple[str, list[int]]]:
    """Starts the same run, freezes it after a few steps, and gives it a time limit that ends soon.

    Returns its job and ranks.
    """
    run_dir = lab.folder / "limited"
    training = lab.training("limited", **LONG | {"logger": "wandb"})
    options = ("nodes=2", "time=25", "node_check=false")
    (job,) = lab.submit(*training, "logger.wandb=offline", options=options)
    lab.slurm.wait(lambda: steps(run_dir) > 4, "five steps")
    with lab.slurm.frozen(job) as ranks:
        assert len(ranks) == 2
        assert lab.slurm.job(job)["TimeLimit"] == "00:25:00"
        lab.slurm.ask("scontrol", "update", f"JobId={job}", f"TimeLimit={SIGNAL_NOW}")
        yield job, ranks


def small_jobs(lab: Lab, frozen: str) -> None:
    """All are submitted before the first is checked.

    SLURM's signal wakes the frozen job, which is then not to start before they are through.
    """
    kinds = (
        a_sweep_of_two_by_two,
        a_chain_of_real_jobs,
        a_step_that_fails_ends_the_chain,
        the_scripts_to_edit_by_hand,
    )
    checks = [kind(lab) for kind in kinds]
    for check in checks:
        next(check)
    for check in checks:
        assert next(check, None) is None
        lab.slurm.park(frozen)


def a_sweep_of_two_by_two(lab: Lab) -> Iterator[str]:
    choices = ("optim.learning_rate=1e-3,1e-2", "seed=0,1")
    training = lab.training("sweep", stop_after=2)
    jobs = lab.submit(*training, "--multirun", *choices, options=QUICK)
    assert len(set(jobs)) == 4
    yield "submitted"
    assert [lab.ended(job) for job in jobs] == ["COMPLETED"] * 4
    runs = sorted(path.parent for path in (lab.folder / "sweep").rglob("metrics.jsonl"))
    assert [run.name for run in runs] == [
        f"learning_rate_{rate}-seed_{seed}" for rate in ("0.001", "0.01") for seed in (0, 1)
    ]
    assert len({curve(run)[1] for run in runs}) == 4


def a_chain_of_real_jobs(lab: Lab) -> Iterator[str]:
    """Text of this repository to a chat model, its scores and the report."""
    out = lab.folder / "chain"
    given = tuning_and_tasks(lab.folder / "given")
    training = [f"{key}={value}" for key, value in SETTINGS.items()]
    said = lab.launch(
        *("chain", f"cluster={lab.slurm.folder}/lab.yaml", "name=chain", "node_check=false"),
        *(f"data={lab.folder}/chain_data", f"out={out}", "corpus=python_docs", "tokenizer=bpe_8k"),
        *(*given, "steps.tokenize.array=2", "steps.tokenize.rounds=2"),
        f"more.tokenize=tokenizer.vocab_size=500 corpus.held_out_fraction=0.2 workers=1 "
        f"corpus.sources.code.paths=[{ROOT}/launch] corpus.sources.prose.paths=[{ROOT}/docs]",
        *("--", *training, "model.vocab_size=512", "stop_after=4", "checkpoint.every_steps=2"),
    )
    jobs = re.findall(r"\d+", " ".join(re.findall(r"^job ([\d, ]+):", said, re.M)))
    assert jobs == submitted(out)
    assert len(jobs) == 9
    found = read_status(out)
    assert found.state.split()[-1] in ("pending", "running")
    left = found.jobs.split(", ")  # the first ones may have ended meanwhile
    assert left == jobs[-len(left) :]
    yield "submitted"
    assert lab.ended(jobs[-1]) == "COMPLETED", said
    assert (out / "export" / "pretrained" / "model.safetensors").exists()
    assert (out / "slurm" / "tokenize-1.log").exists()
    assert steps(out) == 4
    scored = json.loads((out / "results.json").read_text())["models"]
    assert list(scored) == ["pretrained", "tuned", "chat"]
    assert all(model["tasks"]["colours"]["samples"] == 8 for model in scored.values())
    assert "colours" in (out / "report.html").read_text()


def tuning_and_tasks(folder: Path) -> list[str]:
    """Keys of a chain: conversations, pairs, and a task."""
    folder.mkdir()

    def write(name: str, rows: list[dict[str, Any]]) -> Path:
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
        return folder / name

    asked = [{"prompt": f"What is {number} + 1?"} for number in range(8)]
    answers = write("answers.jsonl", [row | {"completion": "A number."} for row in asked])
    pairs = write("pairs.jsonl", [row | {"chosen": "Good.", "rejected": "Bad."} for row in asked])
    rows = write("colours.data", [{"query": f"Ball {number} is", "gold": 0} for number in range(8)])
    (folder / "colours.yaml").write_text(
        "task: colours\ndataset_path: json\noutput_type: multiple_choice\ntest_split: test\n"
        f"dataset_kwargs: {{data_files: {{test: {rows}}}}}\n"
        "doc_to_text: query\ndoc_to_target: gold\ndoc_to_choice: [red, blue]\n"
        "metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]\n"
    )
    return [
        *(f"answers={answers}", f"preferences={pairs}", f"tasks={folder}"),
        *(f"more.{step}=max_seq_len=128 max_steps=2" for step in ("sft", "dpo")),
    ]


def a_step_that_fails_ends_the_chain(lab: Lab) -> Iterator[str]:
    """An array, a step after it, one that fails, and one that then must not run."""
    folder = lab.folder / "broken"

    def step(name: str, code: str, array: int = 0) -> ChainStep:
        made = str(folder / name)
        command = f'timeit -n1 -r1 "{code}; open({made!r}, {"a"!r}).write({"x"!r})"'
        return ChainStep(title=name, command=command, makes=made, array=array)

    steps = {
        "array": step("array", "pass", array=3),
        "next": step("next", f"assert len(open({str(folder / 'array')!r}).read()) == 3"),
        "broken": step("broken", "1/0"),
        "last": step("last", "pass"),
    }
    cluster = f"{lab.slurm.folder}/lab.yaml"
    chain(ChainConfig(name="broken", cluster=cluster, data="", out=str(folder), steps=steps))
    jobs = submitted(folder)
    assert len(jobs) == 4
    yield "submitted"
    assert lab.ended(jobs[2]) == "FAILED"
    assert lab.ended(jobs[3]) == "CANCELLED"
    assert lab.slurm.job(jobs[1])["JobState"] == "COMPLETED"
    assert (folder / "next").exists()
    assert not (folder / "last").exists()


def the_scripts_to_edit_by_hand(lab: Lab) -> Iterator[str]:
    run_dir, data = lab.folder / "by_hand", lab.folder / "by_hand_data"

    def sbatch(script: str, *given: str, options: tuple[str, ...]) -> str:
        return lab.slurm.ask(
            *("sbatch", "--parsable", "--cpus-per-task=1", "--time=30", "-D", str(ROOT)),
            *("-o", f"{lab.folder}/{script}.log", *options),
            f"--export=ALL,OMP_NUM_THREADS=1,PYTHON={sys.executable},RUN_DIR={run_dir}",
            *(f"launch/slurm/{script}.sbatch", *given),
        )

    words = (f"corpus.sources.text.paths=[{ROOT}/docs]", "tokenizer.vocab_size=500", f"out={data}")
    tokenize = ("corpus=text_files", "tokenizer=bpe_8k", *words, "workers=1")
    array = sbatch("tokenize", *tokenize, options=("--array=0-1",))
    rest = ("--array=0", f"--dependency=afterany:{array}")
    jobs = [sbatch("tokenize", *tokenize, options=rest)]
    training = lab.training("by_hand", stop_after=2)
    jobs.append(sbatch("pretrain", *training, options=("--nodes=2", "--gpus-per-node=0")))
    yield "submitted"
    for job in jobs:
        assert lab.ended(job) == "COMPLETED", [p.read_text() for p in lab.folder.glob("*.log")]
    assert (data / "manifest.json").exists()
    assert [start["dp_size"] for start in events(run_dir, "start")] == [2]
    assert steps(run_dir) == 2


def time_limit_preemption_and_a_lost_node_change_nothing(
    lab: Lab, job: str, stopped: list[int]
) -> None:
    run_dir, whole, slurm = lab.folder / "limited", lab.folder / "whole", lab.slurm

    def again() -> None:
        slurm.wait(lambda: slurm.job(job)["JobState"] == "PENDING", "the job to wait again")

    # SLURM's own signal ahead of the limit.
    slurm.wait(lambda: all(signalled(pid, signal.SIGUSR1) for pid in stopped), "SIGUSR1")
    slurm.thaw(stopped)
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
    slurm.wait(lambda: slurm.job(job)["JobState"] != "RUNNING", "the job to end")
    slurm.give_up("n2")
    again()
    # What SLURM still has to tell the node of the old start must not reach the new one.
    slurm.park(job)
    slurm.bring_back("n2")

    assert lab.ended(job) == "COMPLETED", log(run_dir)
    assert int(slurm.job(job)["Restarts"]) == 3
    resumed = [event["step"] for event in events(run_dir, "resume")]
    assert resumed[:2] == [first["step"], second["step"]]
    assert resumed == sorted(resumed)
    assert len(resumed) == 3
    assert ledger(run_dir) == ledger(whole)
    assert curve(run_dir) == curve(whole)
    assert weights(run_dir) == weights(whole)
    seen = [path.name.split("-")[-1] for path in (run_dir / "wandb").glob("offline-run-*")]
    assert len(seen) >= 3
    assert set(seen) == {(run_dir / "wandb_id").read_text()}


def a_killed_torchrun_a_wrong_node_fewer_nodes_status_stop(lab: Lab) -> None:
    run_dir, slurm = lab.folder / "killed", lab.slurm
    training = lab.training("killed", **LONG)
    slurm.wait(slurm.is_idle, "both nodes to be idle")
    (job,) = lab.submit(*training, options=("nodes=2", "min_nodes=1"))
    slurm.wait((run_dir / "checkpoints" / "latest").exists, "a checkpoint")
    with slurm.frozen(job):
        other = slurm.folder / "other" / "numpy-1.0.dist-info"
        other.mkdir(parents=True)
        (other / "METADATA").write_text("Metadata-Version: 2.1\nName: numpy\nVersion: 1.0\n")
        killed = slurm.torchrun("n2")
        assert len(killed) >= 2
        for pid in killed:
            os.kill(pid, signal.SIGKILL)

    # The node check names the second node, and the job comes back without it.
    slurm.wait(lambda: slurm.job(job)["ExcNodeList"] == "n2", "n2 to be excluded", job=job)
    assert re.search("node n2: .* numpy 1.0 instead of [2-9]", log(run_dir)), log(run_dir)
    before = curve(run_dir)
    slurm.wait(lambda: events(run_dir, "resume"), "the run to resume", job=job)
    resumed = events(run_dir, "resume")[0]
    slurm.wait(lambda: steps(run_dir) > resumed["step"], "another step")
    with slurm.frozen(job):
        assert resumed["dp_size"] == 1
        assert slurm.job(job)["NodeList"] == "n1"
        said = lab.launch("status", f"runs={run_dir}")
        assert re.search(
            rf"killed +running +{job} +\d+/{STEPS} .* 1 +{run_dir}/slurm/job.log", said
        ), said
        cluster = f"cluster={slurm.folder}/lab.yaml"
        again = lab.launch("slurm", cluster, "--", *training, code=2)
        assert f"job {job} of this run is running" in again
        lab.launch("stop", f"run={run_dir}")
    assert lab.ended(job) == "FAILED"
    assert "ended with code 85" in lab.launch("status", f"runs={run_dir}")
    assert resumed["step"] < events(run_dir, "stop")[-1]["step"] < STEPS
    done = curve(run_dir)
    assert done[: resumed["step"]] == before[: resumed["step"]]
    for one, undisturbed in zip(done, curve(lab.folder / "whole"), strict=False):
        assert one == pytest.approx(undisturbed, rel=1e-3)  # the same gradients, summed otherwise
