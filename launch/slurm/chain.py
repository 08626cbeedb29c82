"""`python -m launch chain cluster=... name=...`: from text to report as SLURM jobs, each after the
one before it has ended well."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import yaml
from jinja2 import Environment, StrictUndefined
from omegaconf import MISSING

from conf.errors import EXIT_DONE, InputError, did_you_mean
from conf.files import write_text
from launch import training
from launch.pipeline import StepConfig
from launch.slurm.check import check_job
from launch.slurm.script import job_script, python_of, sbatch_options, srun_options
from launch.slurm.settings import Cluster, SlurmConfig, check_time, read_cluster
from launch.slurm.submit import PACKAGES, check_idle, need_slurm, snapshot, submit, write_folder

TEMPLATE = Path(__file__).with_name("step.sbatch.j2")
PRETRAIN = "pretrain"
"""The step that is a job of `python -m launch slurm`; the others are one command each."""


@dataclass
class ChainStep(StepConfig):
    """A step as a job.

    array: jobs that share its work, 0 for one job. rounds: so often the array is submitted, each
        time after the one before; where jobs share several phases of work, none waits for another.
    gpus: that it asks for, null for all of a node.
    sbatch: further options of this step, as `partition=cpu`; they win over the cluster's.
    needs: keys that must have a value when the step is submitted.
    optional: keys of the command that are left out with the step that makes what they name.
    """

    array: int = 0
    rounds: int = 1
    gpus: int | None = None
    sbatch: list[str] = field(default_factory=list)
    needs: list[str] = field(default_factory=list)
    optional: list[str] = field(default_factory=list)


@dataclass
class ChainConfig:
    """Submits the steps in the order in which they stand in the config, one job each. A step whose
    result is there already is left out; where one fails, those after it are cancelled.

    Behind `--` stand the overrides of the training, as for `python -m launch slurm`.

    name: of the run. cluster: a file of `conf/cluster` by its name, or any file by its path.
    data: folder of the tokenized corpus. out: the run folder.
    corpus, tokenizer: as in `python -m data_pipeline tokenize`.
    answers: jsonl of conversations for sft. preferences: jsonl of better and worse answers for dpo.
    tasks: as in `python -m eval lm_eval`.
    more: further overrides of a step, as in more.sft="epochs=2 learning_rate=1e-5".
    nodes, nproc: of the training. time: limit of each job, null for the cluster's.
    only: the steps to submit, as in only=[export,sft], empty for all.
    after: ids of jobs to wait for.
    node_check: compares and times the nodes before the training.
    dry_run: prints the jobs, and writes and submits nothing.
    """

    name: str = MISSING
    cluster: str = MISSING
    data: str = MISSING
    out: str = MISSING
    corpus: str = "python_docs"
    tokenizer: str = "bpe_8k"
    answers: str = ""
    preferences: str = ""
    tasks: str = ""
    more: dict[str, str] = field(default_factory=dict)
    nodes: int = 1
    nproc: int | None = None
    time: str | None = None
    only: list[str] = field(default_factory=list)
    after: list[str] = field(default_factory=list)
    node_check: bool = True
    dry_run: bool = False
    steps: dict[str, ChainStep] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_time("time", self.time)


def chain(config: ChainConfig) -> None:
    """Submits the steps, or prints their jobs."""
    cluster = read_cluster(config.cluster)
    chosen = chosen_steps(config)
    for name, step in chosen.items():
        check_step(name, step)
    run = training_of(config, cluster, chosen[PRETRAIN]) if PRETRAIN in chosen else None
    out = Path(config.out).absolute()
    if not config.dry_run:
        need_slurm()
        check_idle(out)
        snapshot(out / "slurm" / "code")
    after = list(config.after)
    for name, step in chosen.items():
        job = job_of(config, config.nodes if name == PRETRAIN else 1, after)
        if run is not None and name == PRETRAIN:
            text = job_script(job, cluster, run, f"step {PRETRAIN} of {config.name}")
        else:
            text = step_script(config, cluster, job, name, step)
        if config.dry_run:
            times = f", {step.rounds} times" if step.rounds > 1 else ""
            print(f"# ---- {name}: {step.title}{times}\n{text}")
            continue
        if run is not None and name == PRETRAIN:
            script = write_folder(run, text) / "job.sbatch"
        else:
            script = out / "slurm" / f"{name}.sbatch"
            write_text(script, text)
        after = [submit(script)]
        for _ in range(step.rounds - 1):
            after.append(submit(script, after=after[-1]))
        print(f"job {', '.join(after)}: {name}, script {script}", flush=True)
        del after[:-1]


def training_of(config: ChainConfig, cluster: Cluster, step: ChainStep) -> training.Training:
    """Composes the run of the step that trains. Raises InputError where it would be refused; what
    needs the data is left to the run where an earlier step makes it."""
    run = training.compose([*shlex.split(step.command)[1:], *training.overrides])
    try:
        check_job(job_of(config, config.nodes, []), cluster, run)
    except InputError as error:
        raise InputError(f"step {PRETRAIN}: {error}") from None
    return run


def job_of(config: ChainConfig, nodes: int, after: list[str]) -> SlurmConfig:
    """Returns what a step's job asks for."""
    return SlurmConfig(
        cluster=config.cluster,
        nodes=nodes,
        nproc=config.nproc,
        time=config.time,
        after=after,
        node_check=config.node_check,
    )


def chosen_steps(config: ChainConfig) -> dict[str, ChainStep]:
    """The steps to submit: those of `only`, or all whose result is not there yet."""
    for key, names in (("only", config.only), ("more", config.more)):
        for name in names:
            if name not in config.steps:
                raise InputError(f"{key}: '{name}' is no step{did_you_mean(name, config.steps)}.")
    chosen = {}
    for name, step in config.steps.items():
        made = is_made(config, name, step)
        if name in config.only or not (config.only or made):
            chosen[name] = step
        elif made:
            print(f"{name}: {step.makes} is there already", flush=True)
    for name, step in chosen.items():
        for key in step.needs:
            if not getattr(config, key):
                raise InputError(
                    f"{key} has no value: step {name} needs {key}=..., or leave the step out with "
                    f"only=[{','.join(other for other in chosen if other != name)}]."
                )
    makers = {step.makes: name for name, step in config.steps.items()}
    return {
        name: replace(step, command=command_of(name, step, makers, chosen))
        for name, step in chosen.items()
    }


def check_step(name: str, step: ChainStep) -> None:
    """Raises InputError for a key that a step's command does not have, or for data and tasks that
    it would refuse (commands with a key `check` can tell): it would fail after days."""
    words = shlex.split(step.command)
    if name != PRETRAIN and words[0] in PACKAGES:
        try:
            if "check" in yaml.safe_load(training.answer([*words, "--cfg", "job"])):
                training.answer([*words, "check=true"])
        except InputError as error:
            raise InputError(f"step {name}: {error}") from None


def command_of(
    name: str, step: ChainStep, makers: dict[str, str], chosen: Mapping[str, object]
) -> str:
    """A step's command without the optional words that name what nobody makes. makers: the step
    that makes a path. Raises InputError for such a word that is not optional."""
    kept = []
    for word in step.command.split():
        key, _, path = word.partition("=")
        maker = makers.get(path, name)
        if maker == name or maker in chosen or Path(path).exists():
            kept.append(word)
        elif key not in step.optional:
            raise InputError(
                f"only: step {name} reads {path}, which is not there: add step {maker}, which "
                f"makes it."
            )
    return " ".join(kept)


def is_made(config: ChainConfig, name: str, step: ChainStep) -> bool:
    """Whether a step has nothing to do. A training has checkpoints long before it is done."""
    if name == PRETRAIN:
        ended = training.outcome(Path(config.out))
        return ended is not None and ended["code"] == EXIT_DONE
    return Path(step.makes).exists()


def step_script(
    config: ChainConfig, cluster: Cluster, job: SlurmConfig, name: str, step: ChainStep
) -> str:
    """The text of a job that is one command."""
    folder = Path(config.out).absolute() / "slurm"
    slurm = cluster.slurm
    options = [*sbatch_options(job, cluster, step.gpus), *step.sbatch]
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
        srun_options=srun_options(cluster, folder.parent),
        python=python_of(cluster),
        command=command,
    )
