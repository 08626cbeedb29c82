"""Renders the job scripts of training runs and of the steps of a chain."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from launch.pipeline import StepConfig
from launch.slurm.settings import Cluster, SlurmConfig
from launch.training import Training


def job_script(config: SlurmConfig, cluster: Cluster, run: Training, title: str) -> str:
    """Returns the script of a training job."""
    slurm = cluster.slurm
    nproc = config.nproc or cluster.gpus_per_node
    run_dir = run.run_dir.absolute()
    cpus = slurm.cpus_per_task or nproc
    folder = shlex.quote(str(run_dir / "slurm"))
    return _render(
        "job.sbatch.j2",
        cluster,
        run_dir,
        title=title,
        command="slurm",
        name=shlex.quote(run.name),
        options=sbatch_options(config, cluster),
        log=f"{folder}/job.log",
        signal_seconds=slurm.signal_seconds,
        shutdown_seconds=slurm.shutdown_seconds,
        slurm_dir=folder,
        run_dir=shlex.quote(str(run_dir)),
        threads=max(1, cpus // nproc),
        host_python="python3" if slurm.container else python_of(cluster),
        nproc=nproc,
        node_check=config.node_check,
        gpus=nproc if cluster.device == "cuda" else 0,
        gpu_memory_gib=cluster.gpu_memory_gib,
        overrides=shlex.join(run.overrides),
        max_attempts=slurm.max_attempts,
    )


def step_script(
    job: SlurmConfig,
    cluster: Cluster,
    run_dir: Path,
    run_name: str,
    name: str,
    step: StepConfig,
    *,
    options: list[str],
    is_array: bool,
) -> str:
    """Returns the script of a step of a chain that is one command.

    `options` are those of sbatch for the step, and `run_dir` is absolute.
    """
    command = step.command
    if step.processes:
        nproc = job.nproc or cluster.gpus_per_node
        command = f"torch.distributed.run --standalone --nproc-per-node {nproc} -m {command}"
    return _render(
        "step.sbatch.j2",
        cluster,
        run_dir,
        title=f"step {name} of {run_name}",
        command="chain",
        name=shlex.quote(f"{run_name}-{name}"),
        options=options,
        log=run_dir / "slurm" / (f"{name}-%a.log" if is_array else f"{name}.log"),
        step_command=command,
    )


def _render(template: str, cluster: Cluster, folder: Path, **values: Any) -> str:
    """Returns a script with the given values and those that all jobs of a cluster share.

    `folder` is the run folder.
    """
    slurm = cluster.slurm
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        undefined=StrictUndefined,
        keep_trailing_newline=True,
    )
    return environment.get_template(template).render(
        cwd=shlex.quote(os.getcwd()),
        modules=slurm.modules,
        setup=slurm.setup,
        code=shlex.quote(str(folder / "slurm" / "code")),
        env={key: shlex.quote(str(value)) for key, value in slurm.env.items()},
        srun_options=srun_options(cluster, folder),
        python=python_of(cluster),
        **values,
    )


def sbatch_options(config: SlurmConfig, cluster: Cluster, gpus: int | None = None) -> list[str]:
    """Returns the sbatch options of a job.

    `gpus` is the number of GPUs per node, or None for one per process.
    """
    slurm = cluster.slurm
    if gpus is None:
        gpus = config.nproc or cluster.gpus_per_node
    if config.min_nodes is None:
        options = [f"nodes={config.nodes}", "ntasks-per-node=1"]
    else:
        # One task per node is the default. Stated with a range of nodes, it makes SLURM use the
        # fewest.
        options = [f"nodes={config.min_nodes}-{config.nodes}"]
    for key, value in (
        ("cpus-per-task", slurm.cpus_per_task),
        ("mem", slurm.mem),
        ("partition", config.partition or slurm.partition),
        ("account", slurm.account),
        ("qos", slurm.qos),
        ("time", config.time or slurm.time),
    ):
        if value is not None:
            options.append(f"{key}={value}")
    if cluster.device == "cuda" and slurm.gpus != "none" and gpus:
        prefix = "gres=gpu:" if slurm.gpus == "gres" else "gpus-per-node="
        options.append(f"{prefix}{gpus}")
    if config.after:
        options.append(f"dependency=afterok:{':'.join(config.after)}")
        options.append("kill-on-invalid-dep=yes")
    return options + [line.removeprefix("--") for line in slurm.sbatch]


def srun_options(cluster: Cluster, run_dir: Path) -> str:
    """Returns the srun options of every step.

    A container mounts the folder of submission, which is its working directory, and the run folder.
    """
    slurm = cluster.slurm
    options = []
    if slurm.cpus_per_task:
        options.append(f"--cpus-per-task={slurm.cpus_per_task}")  # srun does not inherit it
    if slurm.container:
        cwd = Path.cwd()
        folders = [cwd] if run_dir.is_relative_to(cwd) else [cwd, run_dir]
        mounts = [*slurm.mounts, *(f"{folder}:{folder}" for folder in folders)]
        options.append(f"--container-image={slurm.container}")
        options.append(f"--container-mounts={','.join(mounts)}")
        options.append(f"--container-workdir={cwd}")
    return shlex.join(options) + " " if options else ""


def python_of(cluster: Cluster) -> str:
    """Returns the quoted Python of the steps: the configured, the container's or this process's."""
    inside = "python" if cluster.slurm.container else sys.executable
    return shlex.quote(cluster.slurm.python or inside)
