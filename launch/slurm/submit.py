"""`python -m launch slurm cluster=... nodes=N -- key=value ...`: pretraining as a SLURM job."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from conf.errors import InputError
from conf.files import write_text
from launch import training
from launch.code_copy import copy_code
from launch.slurm.check import check_job
from launch.slurm.script import job_script
from launch.slurm.settings import Cluster, SlurmConfig, read_cluster
from launch.slurm.sweep import checked_runs

ACTIVE = "PENDING,RUNNING,COMPLETING,SUSPENDED,CONFIGURING,REQUEUED,REQUEUE_HOLD"
JOBS = "jobs.jsonl"
"""Name of the file with one line per submitted job, in `slurm/` of a run folder."""


def slurm(config: SlurmConfig) -> None:
    """Submits one job, or with `-- --multirun` one per point of a sweep."""
    cluster = read_cluster(config.cluster)
    runs = checked_runs(lambda run: check_job(config, cluster, run))
    if not config.dry_run:
        need_slurm()
        for run in runs:
            check_idle(run.run_dir)
    for run in runs:
        if config.dry_run:
            print(job_script(config, cluster, run, _title()))
            continue
        job = write_and_submit(config, cluster, run)
        print(f"job {job}: {run.name}, log {(run.run_dir / 'slurm').absolute() / 'job.log'}")


def submit_run(config: SlurmConfig, cluster: Cluster, run: training.Training) -> str:
    """Checks a run and submits its job, and returns the job's number.

    Raises:
        InputError: the run would be refused, or a job of it is active.
    """
    check_job(config, cluster, run)
    check_idle(run.run_dir)
    return write_and_submit(config, cluster, run)


def write_and_submit(config: SlurmConfig, cluster: Cluster, run: training.Training) -> str:
    """Writes what a job needs into the run folder and submits it; returns the job's number."""
    text = job_script(config, cluster, run, _title())
    copy_code(run.run_dir / "slurm" / "code")
    folder = write_folder(run, text)
    hold_checkpoint(run)
    return submit(folder / "job.sbatch")


def _title() -> str:
    """Returns the command line of this process, for the head of job scripts."""
    return shlex.join(["python", "-m", "launch", *training.command_line])


def hold_checkpoint(run: training.Training) -> None:
    """Keeps the checkpoint that a branch starts from until the branch has one of its own."""
    from pretrain.branches.holds import hold  # imports the trainer's configs
    from pretrain.branches.trunk import parse

    settings = run.settings()
    if settings.branch_from:
        warning = hold(*parse(settings.branch_from), run.run_dir)
        print(warning or "", end="\n" if warning else "")


def need_slurm() -> None:
    """Raises InputError if SLURM is not installed."""
    if shutil.which("sbatch") is None:
        raise InputError(
            "sbatch was not found. Submit on the login node of a cluster, or print the job with "
            "dry_run=true."
        )


def write_folder(run: training.Training, text: str) -> Path:
    """Writes the config and job.sbatch into `slurm/` of the run folder, and returns that folder."""
    folder = (run.run_dir / "slurm").absolute()
    write_text(folder / "config.yaml", run.config)
    write_text(folder / "job.sbatch", text)
    for stale in ("attempts.json", "exclude"):
        (folder / stale).unlink(missing_ok=True)
    return folder


def submit(script: Path, after: str | None = None, minutes: int | None = None) -> str:
    """Submits a script, records its job id in the same folder, and returns the id.

    `after` is a job to wait for, and `minutes` the time limit, instead of those in the script.
    """
    options = ["--kill-on-invalid-dep=yes", f"--dependency=afterok:{after}"] if after else []
    options += [f"--time={minutes}"] if minutes else []
    command = ["sbatch", "--parsable", *options, str(script)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        message = " ".join(done.stderr.split())
        raise InputError(
            f"{script} was rejected by sbatch ({message.removeprefix('sbatch: ')}). Correct the "
            "keys under slurm in the cluster's file."
        )
    job = done.stdout.strip().split(";")[0]
    with (script.parent / JOBS).open("a") as file:
        record = {"job": job, "script": script.name, "time": time.time()}
        file.write(json.dumps(record) + "\n")
    return job


@dataclass(frozen=True)
class Job:
    """A job of a run in SLURM.

    number: its id.
    script: name of its script: `job` for a training run, else the step of the chain.
    state: the state in squeue, empty if the job has ended or SLURM does not know it.
    """

    number: str
    script: str
    state: str


def active_jobs(run_dir: Path) -> list[Job]:
    """Returns the pending and running jobs of a run, oldest first, or [] without SLURM."""
    path = run_dir / "slurm" / JOBS
    if shutil.which("squeue") is None or not path.exists():
        return []
    records = map(json.loads, path.read_text().splitlines())
    found = [Job(r["job"], Path(r["script"]).stem, state_of(r["job"])) for r in records]
    return [job for job in found if job.state]


def state_of(job: str) -> str:
    """Returns the state of a job in squeue; for an array, that of a running job if any."""
    done = subprocess.run(
        ["squeue", "-h", "-j", job, "-t", ACTIVE, "-o", "%T"], capture_output=True, text=True
    )
    states = done.stdout.split()
    return "RUNNING" if "RUNNING" in states else "".join(states[:1])


def check_idle(run_dir: Path) -> None:
    """Raises InputError if a job of this run is active: two jobs would write to one folder."""
    for job in active_jobs(run_dir):
        raise InputError(
            f"run_dir={run_dir}: job {job.number} of this run is {job.state.lower()}. Stop it with "
            f"`python -m launch stop run={run_dir}`, or use another run_dir."
        )
