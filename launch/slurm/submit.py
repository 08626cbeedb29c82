"""`python -m launch slurm cluster=... nodes=N -- key=value ...`: pretrain as a SLURM job."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from conf.errors import InputError
from conf.files import write_text
from conf.outputs import Kind, Output
from launch import training
from launch.slurm.check import check_job
from launch.slurm.script import job_script
from launch.slurm.settings import SlurmConfig, read_cluster
from launch.slurm.sweep import points

ROOT = Path(__file__).parent.parent.parent
PACKAGES = ("conf", "pages", "data_pipeline", "model", "pretrain", "finetune", "eval", "launch")
CODE = Kind(
    "a copy of its code",
    lambda folder: (folder / "conf" / "entry.py").is_file(),
    lambda _: lambda name: name.split("/")[0] in PACKAGES,
)
ACTIVE = "PENDING,RUNNING,COMPLETING,SUSPENDED,CONFIGURING,REQUEUED,REQUEUE_HOLD"


def slurm(config: SlurmConfig) -> None:
    """Submits one job, or with `-- --multirun` one for each point of a sweep."""
    cluster = read_cluster(config.cluster)
    runs = [training.compose(given) for given in points(training.overrides)]
    for run in runs:
        try:
            check_job(config, cluster, run)
        except InputError as error:
            if len(runs) == 1:
                raise
            raise InputError(f"{run.name}: {error}") from None
    if not config.dry_run:
        need_slurm()
        for run in runs:
            check_idle(run.run_dir)
    for run in runs:
        text = job_script(
            config, cluster, run, shlex.join(["python", "-m", "launch", *training.typed])
        )
        if config.dry_run:
            print(text)
            continue
        snapshot(run.run_dir / "slurm" / "code")
        folder = write_folder(run, text)
        print(f"job {submit(folder / 'job.sbatch')}: {run.name}, log {folder / 'job.log'}")


def need_slurm() -> None:
    """Raises InputError where there is no SLURM."""
    if shutil.which("sbatch") is None:
        raise InputError(
            "sbatch is not found: submit on a cluster's login node, or look at dry_run=true."
        )


def write_folder(run: training.Training, text: str) -> Path:
    """Writes the config and job.sbatch into `slurm/` of the run folder. Returns it."""
    folder = (run.run_dir / "slurm").absolute()
    write_text(folder / "config.yaml", run.config)
    write_text(folder / "job.sbatch", text)
    for stale in ("attempts.json", "exclude"):
        (folder / stale).unlink(missing_ok=True)
    return folder


def snapshot(folder: Path) -> None:
    """Copies the packages as they are now, in place of an earlier copy."""
    ignored = shutil.ignore_patterns("__pycache__", "*.pyc")
    with Output(folder, CODE, overwrite=True, key="run_dir").folder() as new:
        for name in PACKAGES:
            shutil.copytree(ROOT / name, new / name, ignore=ignored)


def submit(script: Path, after: str | None = None) -> str:
    """Gives a script to sbatch, remembers its id beside it, and returns the id. after: a job to
    wait for, in place of those that the script names."""
    options = ["--kill-on-invalid-dep=yes", f"--dependency=afterok:{after}"] if after else []
    command = ["sbatch", "--parsable", *options, str(script)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        said = " ".join(done.stderr.split())
        raise InputError(f"sbatch refused {script}: {said.removeprefix('sbatch: ')}")
    job = done.stdout.strip().split(";")[0]
    with (script.parent / "jobs.jsonl").open("a") as file:
        about = {"job": job, "script": script.name, "time": time.time()}
        file.write(json.dumps(about) + "\n")
    return job


@dataclass(frozen=True)
class Job:
    """Of a run, as SLURM has it. script: its name, `job` for a training, else the chain's step.
    state: as squeue names it; empty where SLURM has forgotten the job or it is over."""

    number: str
    script: str
    state: str


def jobs_of(run_dir: Path) -> list[str]:
    """Ids of all jobs of a run, the oldest first."""
    return [about["job"] for about in _remembered(run_dir)]


def active_jobs(run_dir: Path) -> list[Job]:
    """Those that wait or run, the oldest first; none where there is no SLURM."""
    if shutil.which("squeue") is None:
        return []
    found = [
        Job(about["job"], Path(about["script"]).stem, state_of(about["job"]))
        for about in _remembered(run_dir)
    ]
    return [job for job in found if job.state]


def _remembered(run_dir: Path) -> list[dict[str, Any]]:
    path = run_dir / "slurm" / "jobs.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def state_of(job: str) -> str:
    """See `Job.state`; of an array, one of its jobs' that runs, or else waits."""
    done = subprocess.run(
        ["squeue", "-h", "-j", job, "-t", ACTIVE, "-o", "%T"], capture_output=True, text=True
    )
    states = done.stdout.split()
    return "RUNNING" if "RUNNING" in states else "".join(states[:1])


def check_idle(run_dir: Path) -> None:
    """Raises InputError where a job of this run waits or runs: two would write one folder."""
    for job in active_jobs(run_dir):
        raise InputError(
            f"{run_dir} has job {job.number} already ({job.state.lower()}): stop it with "
            f"`python -m launch stop run={run_dir}`, or use another run_dir."
        )
