"""`job.sbatch` out of its template."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path

from jinja2 import Environment, StrictUndefined

from launch.slurm.settings import Cluster, SlurmConfig
from launch.training import Training

TEMPLATE = Path(__file__).with_name("job.sbatch.j2")


def job_script(config: SlurmConfig, cluster: Cluster, run: Training, title: str) -> str:
    """The text of a training job."""
    slurm = cluster.slurm
    nproc = config.nproc or cluster.gpus_per_node
    run_dir = run.run_dir.absolute()
    cpus = slurm.cpus_per_task or nproc
    template = Environment(undefined=StrictUndefined, keep_trailing_newline=True).from_string(
        TEMPLATE.read_text()
    )
    return template.render(
        title=title,
        name=shlex.quote(run.name),
        options=sbatch_options(config, cluster),
        signal_seconds=slurm.signal_seconds,
        shutdown_seconds=slurm.shutdown_seconds,
        folder=shlex.quote(str(run_dir / "slurm")),
        run_dir=shlex.quote(str(run_dir)),
        code=shlex.quote(str(run_dir / "slurm" / "code")),
        cwd=shlex.quote(os.getcwd()),
        modules=slurm.modules,
        setup=slurm.setup,
        threads=max(1, cpus // nproc),
        env={key: shlex.quote(str(value)) for key, value in slurm.env.items()},
        srun_options=srun_options(cluster, run_dir),
        python=python_of(cluster),
        host_python="python3" if slurm.container else python_of(cluster),
        nproc=nproc,
        node_check=config.node_check,
        gpus=nproc if cluster.device == "cuda" else 0,
        gpu_memory_gib=cluster.gpu_memory_gib,
        overrides=shlex.join(run.overrides),
        max_attempts=slurm.max_attempts,
    )


def sbatch_options(config: SlurmConfig, cluster: Cluster, gpus: int | None = None) -> list[str]:
    """What the job asks for. gpus: on a node, null for as many as processes."""
    slurm = cluster.slurm
    if gpus is None:
        gpus = config.nproc or cluster.gpus_per_node
    if config.min_nodes is None:
        options = [f"nodes={config.nodes}", "ntasks-per-node=1"]
    else:
        # One task a node is the default; said beside a range, it makes SLURM take the fewest.
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
    """Options of every step. A container sees the folder of submission, where it works, and the
    run's."""
    slurm = cluster.slurm
    options = []
    if slurm.cpus_per_task:
        options.append(f"--cpus-per-task={slurm.cpus_per_task}")  # srun does not inherit it
    if slurm.container:
        here = Path.cwd()
        seen = [here] if run_dir.is_relative_to(here) else [here, run_dir]
        mounts = [*slurm.mounts, *(f"{folder}:{folder}" for folder in seen)]
        options.append(f"--container-image={slurm.container}")
        options.append(f"--container-mounts={','.join(mounts)}")
        options.append(f"--container-workdir={here}")
    return shlex.join(options) + " " if options else ""


def python_of(cluster: Cluster) -> str:
    """Of the steps: that of the container, or the one that submits."""
    inside = "python" if cluster.slurm.container else sys.executable
    return shlex.quote(cluster.slurm.python or inside)
