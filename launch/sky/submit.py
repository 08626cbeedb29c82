"""`python -m launch sky cluster=... nodes=N -- key=value ...`: pretraining on rented nodes."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from pathlib import Path

from conf.errors import InputError
from conf.files import write_text
from launch import training
from launch.code_copy import copy_code
from launch.sky import jobs
from launch.sky.check import check_job
from launch.sky.settings import SkyCluster, SkyConfig, read_sky_cluster
from launch.sky.task import as_yaml, code_of, folder_of, task
from launch.slurm.sweep import checked_runs


def sky(config: SkyConfig) -> None:
    """Launches one managed job, or with `-- --multirun` one per point of a sweep."""
    cluster = read_sky_cluster(config.cluster)
    runs = checked_runs(lambda run: check_job(config, cluster, run))
    if not config.dry_run:
        need_sky()
        secrets_of(cluster)
        for run in runs:
            check_idle(folder_of(run).parent)
    title = shlex.join(["python", "-m", "launch", *training.command_line])
    for run in runs:
        text = as_yaml(task(config, cluster, run), title)
        if config.dry_run:
            print(text)
            continue
        copy_code(code_of(run), installable=True)
        path = write_folder(run, text)
        launch(path, run.name, cluster)
        jobs.record(path.parent.parent, run.name)
        print(f"{run.name}: launched from {path}. Its output: sky jobs logs -n {run.name}")


def need_sky() -> None:
    """Raises InputError if SkyPilot is not installed."""
    if shutil.which("sky") is None:
        raise InputError(
            "sky was not found. Install SkyPilot (`pip install skypilot`) in an environment of its "
            "own whose folder of programs is in PATH, or print the task with dry_run=true."
        )


def secrets_of(cluster: SkyCluster) -> list[str]:
    """Returns the options that pass secrets on. Raises InputError if one is not set here."""
    for name in cluster.sky.secrets:
        if not os.environ.get(name):
            raise InputError(
                f"sky.secrets={name}: this environment variable is not set. Export it, or remove "
                "it from the cluster's file."
            )
    return [part for name in cluster.sky.secrets for part in ("--secret", name)]


def check_idle(run_dir: Path) -> None:
    """Raises InputError if a job of this run is active: two jobs would write to one folder."""
    for job in jobs.active_jobs(run_dir):
        raise InputError(
            f"run_dir={run_dir}: job {job.number} of this run is {job.state.lower()}. Stop it with "
            f"`python -m launch stop run={run_dir} now=true`, or use another run_dir."
        )


def write_folder(run: training.Training, text: str) -> Path:
    """Writes the config and the task into the folder of the job, and returns the task's path."""
    folder = folder_of(run)
    write_text(folder / "config.yaml", run.config)
    write_text(folder / "task.yaml", text)
    return folder / "task.yaml"


def launch(path: Path, name: str, cluster: SkyCluster) -> None:
    """Launches a task as a managed job. Raises InputError if SkyPilot refuses it."""
    command = ["sky", "jobs", "launch", "--yes", "--detach-run", "--name", name]
    done = subprocess.run(
        [*command, *secrets_of(cluster), str(path)], capture_output=True, text=True
    )
    if done.returncode:
        message = " ".join((done.stderr or done.stdout).split())[-500:]
        raise InputError(
            f"{path} was rejected by SkyPilot ({message}). Correct the keys under sky in the "
            "cluster's file, and run `sky check`."
        )
