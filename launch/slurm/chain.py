"""`python -m launch chain cluster=... data=... out=...`: from text to report as SLURM jobs, each
after the one before it has ended well."""

from __future__ import annotations

import os
import shlex
import sys
from dataclasses import dataclass, field
from pathlib import Path

from jinja2 import Environment, StrictUndefined
from omegaconf import MISSING

from conf.errors import InputError, did_you_mean
from launch import training
from launch.pipeline import StepConfig
from launch.slurm.script import job_script, sbatch_options, srun_options
from launch.slurm.settings import Cluster, SlurmConfig, read_cluster
from launch.slurm.submit import check_idle, need_slurm, snapshot, submit, write_folder

TEMPLATE = Path(__file__).with_name("step.sbatch.j2")


@dataclass
class ChainStep(StepConfig):
    """A step as a job. array: jobs that share its work, 0 for one job."""

    array: int = 0


@dataclass
class ChainConfig:
    """Steps by name, in the order in which they run; what `makes` names and is there is left out.

    data: folder of the tokenized corpus. out: the run folder. nodes, nproc: of the training.
    only: steps to submit, none for all. after: ids of jobs to wait for.
    corpus, recipe, ...: `-- key=value ...` are overrides of the training.
    """

    name: str = MISSING
    cluster: str = MISSING
    data: str = MISSING
    out: str = MISSING
    corpus: str = "python_docs"
    tokenizer: str = "bpe_8k"
    pairs: str = MISSING
    tasks: str = MISSING
    nodes: int = 1
    nproc: int | None = None
    time: str | None = None
    only: list[str] = field(default_factory=list)
    after: list[str] = field(default_factory=list)
    node_check: bool = True
    dry_run: bool = False
    steps: dict[str, ChainStep] = field(default_factory=dict)


def chain(config: ChainConfig) -> None:
    """Submits the steps, or prints their jobs."""
    cluster = read_cluster(config.cluster)
    for name in config.only:
        if name not in config.steps:
            raise InputError(f"only={name} is no step{did_you_mean(name, config.steps)}.")
    chosen = {n: s for n, s in config.steps.items() if not config.only or n in config.only}
    if not config.dry_run:
        need_slurm()
        check_idle(Path(config.out))
    code = Path(config.out).absolute() / "slurm" / "code"
    after = list(config.after)
    for name, step in chosen.items():
        if Path(step.makes).exists() and not config.only:
            print(f"{name}: {step.makes} is there", flush=True)
            continue
        job = SlurmConfig(
            cluster=config.cluster,
            nodes=config.nodes if name == "pretrain" else 1,
            nproc=config.nproc,
            time=config.time,
            after=after,
            node_check=config.node_check,
        )
        if name == "pretrain":
            run = training.compose([*shlex.split(step.command)[1:], *training.overrides])
            text = job_script(job, cluster, run, f"step pretrain of {config.name}")
            script = run.run_dir / "slurm" / "job.sbatch"
        else:
            text = step_script(config, cluster, job, name, step)
            script = code.parent / f"{name}.sbatch"
        if config.dry_run:
            print(text)
            continue
        if not code.exists():
            code.parent.mkdir(parents=True, exist_ok=True)
            snapshot(code)
        if name == "pretrain":
            write_folder(run, text)
        else:
            script.write_text(text)
        after = [submit(script)]
        print(f"job {after[0]}: {name}, script {script}", flush=True)


def step_script(
    config: ChainConfig, cluster: Cluster, job: SlurmConfig, name: str, step: ChainStep
) -> str:
    """The text of a job that is one command."""
    folder = Path(config.out).absolute() / "slurm"
    slurm = cluster.slurm
    options = sbatch_options(job, cluster)
    if step.array:
        options.append(f"array=0-{step.array - 1}")
    command = step.command
    if step.processes:
        nproc = config.nproc or cluster.gpus_per_node
        command = f"torch.distributed.run --standalone --nproc-per-node {nproc} -m {command}"
    template = Environment(undefined=StrictUndefined, keep_trailing_newline=True).from_string(
        TEMPLATE.read_text()
    )
    return template.render(
        title=f"step {name} of {config.name}",
        name=shlex.quote(f"{config.name}-{name}"),
        options=options,
        log=folder / (f"{name}-%a.log" if step.array else f"{name}.log"),
        cwd=shlex.quote(os.getcwd()),
        modules=slurm.modules,
        setup=slurm.setup,
        code=shlex.quote(str(folder / "code")),
        env={key: shlex.quote(str(value)) for key, value in slurm.env.items()},
        srun_options=srun_options(cluster),
        python=shlex.quote(slurm.python or sys.executable),
        command=command,
    )
