"""Checks a page: each command is split like bash does, composed, and put through the pure checks.

The files that it reads have to exist: in the repository, made by an earlier command on the page, or
declared by the page to be the reader's own (`own`).
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field, replace
from io import StringIO
from itertools import pairwise
from pathlib import Path
from typing import Any

from conf.errors import InputError
from conf.overrides import SWEEP
from data_pipeline.store.manifest import load_manifest
from launch import training
from launch.local import LocalConfig
from launch.plan.config import PlanConfig
from launch.plan.show import plan
from launch.sky.settings import SkyConfig
from launch.sky.submit import sky
from launch.slurm.chain import ChainConfig, chain
from launch.slurm.settings import SlurmConfig
from launch.slurm.submit import slurm
from launch.studies.command import study
from launch.studies.config import StudyConfig
from pretrain.checks import Job
from pretrain.config import PretrainConfig
from pretrain.preflight import preflight
from tests.conftest import ROOT
from tests.docs import sandbox
from tests.docs.composing import STAGES, answering_here, composed
from tests.docs.extract import CommandLine, command_lines, strays
from tests.docs.shell import calls
from tests.pretrain.branches.trunks import save

READS: dict[str, tuple[str, ...]] = {
    "TokenizeConfig": (),  # see Checker.tokenize
    "PlanDataConfig": (),  # see Checker.tokenize
    "data_pipeline InspectConfig": ("data", "run"),
    "model InspectConfig": (),
    "VerifyConfig": ("data",),
    "ImportConfig": ("path", "sources", "tokenizer"),
    "QualityConfig": ("good", "bad"),
    "PairsConfig": ("corpus",),
    "WhereConfig": ("run",),
    "RemapVocabConfig": ("model", "tokenizer"),
    "GGUFConfig": ("model",),
    "ImportModelConfig": ("path", "tokenizer"),
    "PretrainConfig": (
        *("data.folder", "init_from", "evaluation.tasks", "evaluation.task_folder"),
        "objective.teacher",
    ),
    "MemoryConfig": ("init_from", "objective.teacher"),
    "CheckpointsConfig": ("dir",),
    "ExportConfig": ("run",),
    "AverageConfig": ("run",),
    "ReceiptsConfig": ("a", "b"),
    "TeachConfig": ("model", "data"),
    "SftConfig": ("model", "data", "validation"),
    "DpoConfig": ("model", "data", "validation"),
    "ShowConfig": ("model", "data"),
    "BuildTasksConfig": ("corpus",),
    "LmEvalConfig": ("models", "task_folder"),
    "CompareConfig": ("results",),
    "PublishedConfig": (),
    "FetchConfig": (),
    "PublishConfig": ("model", "results", "run"),
    "PerplexityConfig": ("model", "data"),
    "GenerateConfig": ("model", "prompts_file"),
    "ChatConfig": ("model",),
    "ServeConfig": ("model",),
    "ReportConfig": (
        *("run", "corpus", "others", "results", "perplexity", "tuned", "samples", "card"),
    ),
    "PipelineConfig": (),
    "DoctorConfig": (),
    "PlanConfig": ("data", "calibration", "init_from", "objective.teacher"),
    "LocalConfig": (),
    "SlurmConfig": (),
    "SkyConfig": (),
    "ChainConfig": ("answers", "preferences", "data_plan"),
    "StatusConfig": (),
    "StopConfig": ("run",),
    "StudyConfig": (),
    "UiConfig": (),
}
"""Keys with paths that each command reads, by the dataclass of its settings."""
MAKES: dict[str, tuple[str, str]] = {
    "TokenizeConfig": ("out", "corpus:code,prose"),
    "PlanDataConfig": ("out", "preparation_plan"),
    "data_pipeline InspectConfig": ("out", "file"),
    "ImportConfig": ("out", "corpus:pile"),
    "QualityConfig": ("out", "file"),
    "RemapVocabConfig": ("out", "model"),
    "GGUFConfig": ("out", "file"),
    "ImportModelConfig": ("out", "model"),
    "PretrainConfig": ("run_dir", "run"),
    "CheckpointsConfig": ("out", "model"),
    "ExportConfig": ("out", "model"),
    "TeachConfig": ("out", "teacher_cache"),
    "AverageConfig": ("out", "model"),
    "SftConfig": ("out", "model"),
    "DpoConfig": ("out", "model"),
    "ShowConfig": ("out", "file"),
    "BuildTasksConfig": ("out", "tasks"),
    "LmEvalConfig": ("out", "file"),
    "PerplexityConfig": ("out", "file"),
    "GenerateConfig": ("out", "file"),
    "ReportConfig": ("out", "file"),
    "StudyConfig": ("out", "study"),
}
"""Key with the path that a command writes, and the stand-in for it (`sandbox.make`)."""


@dataclass
class Checker:
    """Checks the commands of one page in a separate folder.

    Attributes:
        own: The reader's paths, with the kind of stand-in; None for one outside the folder.
        exempt: Commands that are not tried, with the reason.
        used: The paths and commands of both that the page has.
        checked: Number of commands that passed.
    """

    folder: Path
    own: Mapping[str, str | None] = field(default_factory=dict)
    exempt: Mapping[str, str] = field(default_factory=dict)
    used: set[str] = field(default_factory=set)
    checked: int = 0

    def page(self, name: str, text: str, found: list[CommandLine] | None = None) -> list[str]:
        """Returns the errors of a page, one sentence per command."""
        found = command_lines(name, text) if found is None else found
        wrong = [
            f"{name}: {stray} looks like a command and was not checked"
            for stray in strays(text, found)
        ]
        for path, kind in self.own.items():
            if kind is not None:
                sandbox.make(self.folder / path, kind)
        for command in found:
            if command.text in self.exempt:
                self.used.add(command.text)
                continue
            try:
                with working_in(self.folder):
                    self.command(command.text + self.help_for(command))
                self.checked += 1
            except InputError as error:
                wrong.append(f"{command.where}: {command.text}\n    {error}")
        return wrong

    def help_for(self, command: CommandLine) -> str:
        """Returns ` --help` for a command that a sentence only names, so that it is not run."""
        named = re.fullmatch(r"(?:python|torchrun) -m \w+( \w+)?", command.text)
        return " --help" if command.inline and named else ""

    def command(self, line: str) -> None:
        """Raises InputError if a command line does not work."""
        found, said = calls(line, self.folder, self.folder.parent / "record")
        if said or not found:
            raise InputError(said or "bash calls nothing that is known.")
        self.used |= {own for own in self.own if re.search(rf"[=\['\" ,]{re.escape(own)}", line)}
        for words in found:
            self.call(words)

    def call(self, words: list[str]) -> None:
        """Raises InputError if a tool does not accept its arguments."""
        tool, *rest = words
        if tool in ("python", "python3"):
            if rest[0] == "-m":
                self.module(rest[1], rest[2:], 1)
            else:
                script(rest[0], rest[1:])
        elif tool == "torchrun":
            self.torchrun(rest)
        elif tool == "sbatch":
            self.sbatch(rest)
        elif tool == "make":
            make_target(rest)
        elif tool == "pip":
            pip(rest)
        else:
            raise InputError(f"{tool}: nothing here knows how to check it.")

    def module(self, name: str, arguments: list[str], processes: int) -> None:
        """Composes a command of the project, and checks what it would run."""
        if name == "pytest":
            tests(arguments)
            return
        if name not in STAGES:
            script(f"{name.replace('.', '/')}/__main__.py", arguments)
            return
        for settings in composed(name, arguments):
            self.settings(settings, processes)

    def torchrun(self, words: list[str]) -> None:
        """Parses options like torchrun does."""
        from torch.distributed.run import get_args_parser

        try:
            with redirect_stderr(StringIO()):
                # Options alone, in a sentence, are parsed as those of any script.
                alone = all(word.startswith("-") or word.isdecimal() for word in words)
                given = get_args_parser().parse_args([*words, "script.py"] if alone else words)
        except SystemExit:
            raise InputError(f"torchrun does not take {' '.join(words)}.") from None
        if not given.module:
            return
        processes = int(given.nproc_per_node) * int(given.nnodes.rpartition(":")[2])
        self.module(given.training_script, given.training_script_args, processes)

    def sbatch(self, words: list[str]) -> None:
        """Checks a script of launch/slurm and the command in it, with eight GPUs per node."""
        options = [word for word in words if word.startswith("--")]
        path, *arguments = [word for word in words if not word.startswith("--")]
        if not (ROOT / path).is_file():
            raise InputError(f"{path} does not exist.")
        stage = Path(path).stem
        nodes = [int(word.partition("=")[2]) for word in options if word.startswith("--nodes=")]
        if stage == "pretrain":
            self.module("pretrain", arguments, 8 * sum(nodes))
        elif stage == "teach":
            self.module("pretrain", [stage, *arguments], 1)
        else:
            self.module("data_pipeline", [stage, *arguments], 1)

    def settings(self, settings: Any, processes: int) -> None:
        """Checks the settings with which a command would run."""
        kind = kind_of(settings)
        if isinstance(settings, PretrainConfig):
            train(settings, processes)
        self.read(settings)
        if kind in ("TokenizeConfig", "PlanDataConfig"):
            self.tokenize(settings)
        if kind in LAUNCHED:
            self.launched(settings, LAUNCHED[kind])
        for run in self.trainings(settings):
            self.read(run)
            self.made(run)
        self.made(settings)

    def launched(self, settings: Any, run: Callable[[Any], None]) -> None:
        """Runs a command of `launch` without what it would write or submit.

        The commands that it composes are composed in this process.
        """
        harmless = HARMLESS.get(kind_of(settings), {"dry_run": True})
        before = list(training.overrides)
        with answering_here() as steps, redirect_stdout(StringIO()):
            run(replace(settings, **harmless))
        training.overrides[:] = before
        for step in steps:
            if kind_of(step) == "TokenizeConfig":
                self.tokenize(step)

    def trainings(self, settings: Any) -> Iterator[PretrainConfig]:
        """Yields the runs after `--`; those of `local` are checked here."""
        if not training.overrides or isinstance(settings, PlanConfig | StudyConfig):
            return
        given = [part for part in training.overrides if part not in SWEEP]
        sweep = ["--multirun"] if len(given) < len(training.overrides) else []
        before = list(training.overrides)
        if isinstance(settings, ChainConfig):
            given = [*given, f"data.folder={settings.data}", f"run_dir={settings.out}"]
        for run in composed("pretrain", [*sweep, *given]):
            if isinstance(settings, LocalConfig):
                train(run, settings.nproc or 1)
            if isinstance(settings, ChainConfig):
                run.data.folder = "."  # which a step of the chain makes
            yield run
        training.overrides[:] = before

    def read(self, settings: Any) -> None:
        """Raises InputError for a path that does not exist."""
        for key in READS[kind_of(settings)]:
            value = settings
            for part in key.split("."):
                value = value.get(part) if isinstance(value, dict) else getattr(value, part)
            values = value.values() if isinstance(value, dict) else value
            for path in values if not isinstance(values, str | None) else [values]:
                if key != "evaluation.tasks" or "/" in str(path):
                    self.there(key, path)

    def tokenize(self, settings: Any) -> None:
        """Checks the text, and the tokenizer if one is loaded."""
        for name, source in settings.corpus.sources.items():
            if source.format != "huggingface":
                for path in source.paths:
                    self.there(f"corpus.sources.{name}.paths", path)
        if getattr(settings.tokenizer, "path", None):
            self.there("tokenizer.path", settings.tokenizer.path)

    def there(self, key: str, path: str | None) -> None:
        """Raises InputError if a path does not exist."""
        if not path:
            return
        if any(path == own or path.startswith(f"{own.rstrip('/')}/") for own in self.own):
            return
        if not Path(path).exists() and not (ROOT / path).exists():
            raise InputError(
                f"{key}={path}: nothing of the repository, no command before it on the page makes "
                "it, and it is not declared to be the reader's own."
            )

    def made(self, settings: Any) -> None:
        """Makes what a command writes."""
        kind = kind_of(settings)
        if kind == "PipelineConfig":
            self.demo(settings)
        elif kind == "PairsConfig":
            make_pairs(settings)
        elif kind in MAKES:
            key, stand_in = MAKES[kind]
            path = getattr(settings, key)
            if path and not Path(path).is_absolute() and not Path(path).exists():
                sandbox.make(Path(path), stand_in)
                if isinstance(settings, PretrainConfig) and settings.checkpoint.keep_every:
                    every = settings.checkpoint.keep_every
                    save(settings, load_manifest(settings.data.folder), (every, 2 * every))

    def demo(self, settings: Any) -> None:
        """Makes all that the steps of `make demo` write."""
        for step in settings.steps.values():
            words = step.command.split()
            for made in composed(words[0], words[1:]):
                self.settings(made, max(1, step.processes))


def kind_of(settings: Any) -> str:
    """Returns the name of a command's dataclass, with its stage if two have the same name."""
    name = type(settings).__name__
    return f"{type(settings).__module__.split('.')[0]} {name}" if name == "InspectConfig" else name


def train(config: PretrainConfig, processes: int) -> None:
    """Raises InputError if a run would be refused, on CPUs or on GPUs."""
    devices = ("cpu", "cuda") if config.device == "auto" else (config.device,)
    for device in devices:
        preflight(config, Job(processes, device, here=False, ranks_per_node=min(8, processes)))


LAUNCHED: dict[str, Callable[[Any], None]] = {
    SlurmConfig.__name__: slurm,
    SkyConfig.__name__: sky,
    ChainConfig.__name__: chain,
    PlanConfig.__name__: plan,
    StudyConfig.__name__: study,
}
"""Commands of `launch` that are run, without writing or submitting anything."""
HARMLESS: dict[str, dict[str, Any]] = {
    PlanConfig.__name__: {"out": None},
    StudyConfig.__name__: {"plan": True},
}
"""Settings with which these commands write and submit nothing; without an entry, dry_run."""


def make_pairs(settings: Any) -> None:
    """Makes the files of `data_pipeline pairs`."""
    names = ["train", "held_out"] + (["preferences"] if settings.preferences else [])
    for name in names:
        kind = "preferences" if name == "preferences" else "conversations"
        sandbox.make(Path(settings.out) / f"{name}.jsonl", kind)


def script(path: str, words: list[str]) -> None:
    """Raises InputError if a script does not exist or does not name an option."""
    if not (ROOT / path).is_file():
        raise InputError(f"{path} does not exist.")
    text = (ROOT / path).read_text()
    for word in words:
        if word.startswith("--") and f'"{word.partition("=")[0]}"' not in text:
            raise InputError(f"{path} has no option {word}.")


def make_target(words: list[str]) -> None:
    """Raises InputError for a word that is not a target or a variable of the Makefile."""
    makefile = (ROOT / "Makefile").read_text()
    targets = re.findall(r"^([\w-]+):", makefile, re.M)
    variables = re.findall(r"^(\w+) \?=", makefile, re.M)
    for word in words:
        name, sign, _ = word.partition("=")
        if name not in (variables if sign else targets):
            raise InputError(f"make {word}: the Makefile has no such target.")


def tests(words: list[str]) -> None:
    """Raises InputError for tests that do not exist."""
    for word in words:
        if not (ROOT / word).exists():
            raise InputError(f"pytest {word}: the file does not exist.")


def pip(words: list[str]) -> None:
    """Raises InputError for a file, an extra or a package that does not exist."""
    setup = (ROOT / "setup.py").read_text()
    pins = (ROOT / "constraints.txt").read_text()
    for before, word in pairwise(words):
        if before == "-c" and not (ROOT / word).is_file():
            raise InputError(f"pip: {word} does not exist.")
        for extra in re.findall(r"[\w-]+", word) if word.startswith(".[") else ():
            if not re.search(rf'"{extra}":', setup):
                raise InputError(f"pip: setup.py has no extra {extra}.")
        if before != "-c" and re.fullmatch(r"[a-z][\w-]*", word) and f"\n{word}==" not in pins:
            raise InputError(f"pip: constraints.txt has no {word}.")


@contextmanager
def working_in(folder: Path) -> Iterator[None]:
    """Changes into a folder for the duration of a block."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)
