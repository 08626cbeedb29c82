"""`python -m launch chain cluster=... name=...`: all stages, each as a SLURM job.

Each job starts after the previous one has succeeded.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from omegaconf import MISSING

from conf.errors import EXIT_DONE, InputError, did_you_mean
from conf.files import write_text
from launch import training
from launch.code_copy import PACKAGES, copy_code
from launch.pipeline import StepConfig
from launch.slurm.array_plan import read_array_plan
from launch.slurm.check import check_job
from launch.slurm.script import job_script, sbatch_options, step_script
from launch.slurm.settings import Cluster, SlurmConfig, check_time, read_cluster
from launch.slurm.submit import check_idle, need_slurm, submit, write_folder

PRETRAIN = "pretrain"
"""Name of the step that is a job of `python -m launch slurm`; the others are one command each."""


@dataclass
class ChainStep(StepConfig):
    """A step of a chain, which runs as a SLURM job.

    array: number of jobs that share the work of the step; 0 for one job.
    rounds: number of times that the array is submitted; each array starts after the previous one.
        Work in several phases needs several rounds, so that no job of an array has to wait for
        another.
    plan: file that `python -m data_pipeline plan` wrote, whose array takes the place of `array` and
        `rounds`, with its cores, memory and time limits; empty for none.
    gpus: number of GPUs of the job; null for the chain's nproc, or without it all of a node.
    sbatch: additional options of this step, such as `partition=cpu`; they override the cluster's.
    needs: keys of the chain that must have a value when the step is submitted.
    optional: keys of the command that are dropped together with the step that makes their file.
    """

    array: int = 0
    rounds: int = 1
    plan: str = ""
    gpus: int | None = None
    sbatch: list[str] = field(default_factory=list)
    needs: list[str] = field(default_factory=list)
    optional: list[str] = field(default_factory=list)


@dataclass
class ChainConfig:
    """Configuration of `chain`, which submits one job per step, in the order of the config.

    A step whose result exists is skipped. If a step fails, the steps after it are cancelled. The
    overrides of the training run follow `--`, as for `python -m launch slurm`.

    name: name of the run.
    cluster: the name of a file in `conf/cluster`, or the path of any file.
    data: folder of the tokenized corpus.
    data_plan: file that `python -m data_pipeline plan` wrote, which sizes the array that makes the
        corpus; empty for the array of the step.
    out: the run folder.
    corpus, tokenizer: same as for `python -m data_pipeline tokenize`.
    answers: jsonl file of conversations for sft.
    preferences: jsonl file of better and worse answers for dpo.
    tasks: same as for `python -m eval lm_eval`.
    more: additional overrides of a step, such as more.sft="epochs=2 learning_rate=1e-5".
    nodes, nproc: number of nodes of the training run, and of its processes per node.
    time: time limit of each job; null for the cluster's.
    only: the steps to submit, such as only=[export,sft]; empty for all.
    after: ids of jobs to wait for.
    node_check: compares and times the nodes before the training.
    dry_run: prints the jobs without writing or submitting anything.
    steps: the steps by name (conf/command/chain.yaml).
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
    data_plan: str = ""
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
    arrays = {name: read_array_plan(step.plan) for name, step in chosen.items() if step.plan}
    run = training_of(config, cluster, chosen[PRETRAIN]) if PRETRAIN in chosen else None
    out = Path(config.out).absolute()
    if not config.dry_run:
        need_slurm()
        check_idle(out)
        copy_code(out / "slurm" / "code")
    after = list(config.after)
    for name, step in chosen.items():
        job = job_of(config, config.nodes if name == PRETRAIN else 1, after)
        array = arrays.get(name)
        if array is not None:
            step = replace(step, array=array.tasks, rounds=len(array.minutes))
        if run is not None and name == PRETRAIN:
            text = job_script(job, cluster, run, f"step {PRETRAIN} of {config.name}")
        else:
            text = script_of(
                config, job, array.resources(cluster) if array else cluster, name, step
            )
        limits: list[int | None] = [*array.minutes] if array else [None] * step.rounds
        if config.dry_run:
            times = f", {step.rounds} times" if step.rounds > 1 else ""
            if array:
                times += f" with time limits of {', '.join(map(str, limits))} minutes"
            print(f"# ---- {name}: {step.title}{times}\n{text}")
            continue
        if run is not None and name == PRETRAIN:
            script = write_folder(run, text) / "job.sbatch"
        else:
            script = out / "slurm" / f"{name}.sbatch"
            write_text(script, text)
        after = [submit(script, minutes=limits[0])]
        for minutes in limits[1:]:
            after.append(submit(script, after=after[-1], minutes=minutes))
        print(f"job {', '.join(after)}: {name}, script {script}", flush=True)
        del after[:-1]


def script_of(
    config: ChainConfig, job: SlurmConfig, cluster: Cluster, name: str, step: ChainStep
) -> str:
    """Returns the script of a step that is one command."""
    options = [*sbatch_options(job, cluster, step.gpus), *step.sbatch]
    if step.array:
        options.append(f"array=0-{step.array - 1}")
    return step_script(
        job,
        cluster,
        Path(config.out).absolute(),
        config.name,
        name,
        step,
        options=options,
        is_array=step.array > 0,
    )


def training_of(config: ChainConfig, cluster: Cluster, step: ChainStep) -> training.Training:
    """Returns the composed run of the training step. Raises InputError if it would be refused.

    Checks that need the corpus are skipped if it is remote or does not exist yet.
    """
    run = training.compose([*shlex.split(step.command)[1:], *training.overrides])
    try:
        check_job(job_of(config, config.nodes, []), cluster, run)
    except InputError as error:
        raise InputError(f"step {PRETRAIN}: {error}") from None
    return run


def job_of(config: ChainConfig, nodes: int, after: list[str]) -> SlurmConfig:
    """Returns the resources of a step's job."""
    return SlurmConfig(
        cluster=config.cluster,
        nodes=nodes,
        nproc=config.nproc,
        time=config.time,
        after=after,
        node_check=config.node_check,
    )


def chosen_steps(config: ChainConfig) -> dict[str, ChainStep]:
    """Returns the steps to submit: those of `only`, or all whose result does not exist yet."""
    for key, names in (("only", config.only), ("more", config.more)):
        for name in names:
            if name not in config.steps:
                raise InputError(f"{key}: unknown step '{name}'{did_you_mean(name, config.steps)}.")
    chosen = {}
    for name, step in config.steps.items():
        made = is_made(config, name, step)
        if name in config.only or not (config.only or made):
            chosen[name] = step
        elif made:
            print(f"{name}: skipped, because {step.makes} already exists", flush=True)
    for name, step in chosen.items():
        for key in step.needs:
            if not getattr(config, key):
                raise InputError(
                    f"{key} has no value, but step {name} needs it. Give {key}=..., or skip the "
                    f"step with only=[{','.join(other for other in chosen if other != name)}]."
                )
    makers = {step.makes: name for name, step in config.steps.items()}
    return {
        name: replace(step, command=command_of(name, step, makers, chosen))
        for name, step in chosen.items()
    }


def check_step(name: str, step: ChainStep) -> None:
    """Raises InputError if a step's command would refuse its settings.

    Without this check, the step would fail when its job starts, which may be days later. Commands
    with a key `check` also check their data or tasks.
    """
    words = shlex.split(step.command)
    if name != PRETRAIN and words[0] in PACKAGES:
        try:
            if hasattr(training.compose_command_line(words), "check"):
                training.answer([*words, "check=true"])
        except InputError as error:
            raise InputError(f"step {name}: {error}") from None


def command_of(
    name: str, step: ChainStep, makers: dict[str, str], chosen: Mapping[str, object]
) -> str:
    """Returns a step's command without the optional arguments whose file will be missing.

    Args:
        name: the step.
        step: its config.
        makers: the step that makes each path.
        chosen: the steps to submit.

    Raises:
        InputError: a required file neither exists nor is made by a chosen step.
    """
    kept = []
    for word in step.command.split():
        key, _, path = word.partition("=")
        maker = makers.get(path, name)
        if maker == name or maker in chosen or Path(path).exists():
            kept.append(word)
        elif key not in step.optional:
            raise InputError(
                f"only: step {name} reads {path}, which does not exist. Add step {maker}, which "
                "makes this path."
            )
    return " ".join(kept)


def is_made(config: ChainConfig, name: str, step: ChainStep) -> bool:
    """Returns whether the result of a step exists; for a training run, whether it has finished."""
    if name == PRETRAIN:
        ended = training.outcome(Path(config.out))
        return ended is not None and ended["code"] == EXIT_DONE
    return Path(step.makes).exists()
