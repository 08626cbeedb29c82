"""Which tasks `python -m eval lm_eval` runs: a local folder, a suite of `conf/tasks/`, or names."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import yaml
from omegaconf import MISSING

from conf.entry import CONF_DIR
from conf.errors import InputError
from conf.wandb_run import LoggerConfig

LOCAL = "local"


@dataclass
class LmEvalConfig:
    """models: folders, runs, their checkpoints or names on the Hub, by the names that tables show.

    tasks: `local` for all tasks of `task_folder`; a suite of `conf/tasks/`; a folder of task
        files; a task of lm-eval; or a list of these.
    out: the JSON file of results; a model whose results it holds already is skipped.
    overwrite: drops the scores of such a file that are there already.
    num_fewshot: for all tasks, null for what the suite or the task itself says.
    limit: samples of each task, null for all (for trying out: not a result).
    chat: renders prompts with the model's own chat template.
    dtype: auto for the stored type where the device multiplies it, else float32.
    check: looks up the tasks, which are refused as they would be later, and ends; models and data
        sets need not be there yet.
    """

    models: dict[str, str] = field(default_factory=dict)
    tasks: Any = LOCAL
    task_folder: str | None = None
    out: str = MISSING
    num_fewshot: int | None = None
    limit: int | None = None
    chat: bool = False
    batch_size: int = 16
    dtype: str = "auto"
    device: str = "auto"
    overwrite: bool = False
    check: bool = False
    logger: LoggerConfig = field(default_factory=LoggerConfig)

    def __post_init__(self) -> None:
        if not self.models:
            raise InputError("models is empty: give at least one as models.NAME=MODEL.")
        for key in ("batch_size", "limit"):
            if getattr(self, key) is not None and getattr(self, key) < 1:
                raise InputError(f"{key}={getattr(self, key)}, expected at least 1.")


@dataclass(frozen=True)
class Choice:
    """A task, with how many examples it is shown (None: as the task says) and the metric that
    stands for it in tables (None: all)."""

    task: str
    num_fewshot: int | None = None
    metric: str | None = None


@dataclass
class Selection:
    """What is asked for. folders: where task files of ours lie; built_in: whether lm-eval's own
    tasks are needed too, whose data sets may be remote; suites: those that are asked for as they
    are published."""

    choices: list[Choice] = field(default_factory=list)
    folders: list[Path] = field(default_factory=list)
    built_in: bool = False
    suites: list[str] = field(default_factory=list)


class Asked(Protocol):
    """What a config says of tasks, as `LmEvalConfig` describes it."""

    tasks: Any
    task_folder: str | None
    num_fewshot: int | None


def select(config: Asked, prefix: str = "") -> Selection:
    """Resolves `tasks`; names of lm-eval's tasks are not yet looked up.

    prefix: of these keys in errors.

    Raises:
        InputError: a folder that is named holds no tasks.
    """
    selection = Selection()
    if config.task_folder is not None:
        selection.folders.append(_task_folder(Path(config.task_folder), f"{prefix}task_folder"))
    asked = config.tasks if isinstance(config.tasks, list) else [config.tasks]
    for name in map(str, asked):
        if name == LOCAL:
            if config.task_folder is None:
                raise InputError(
                    f"{prefix}tasks=local needs {prefix}task_folder=...: the folder that "
                    "python -m eval build_tasks made."
                )
            selection.choices += _local(Path(config.task_folder))
        elif name in known_suites():
            selection.choices += suite_choices(name)
            selection.suites.append(name)
        elif "/" in name or Path(name).is_dir():
            selection.folders.append(_task_folder(Path(name), f"{prefix}tasks"))
            selection.choices += _local(Path(name))
        else:
            selection.choices.append(Choice(name))
    # A task file of ours stands for the task of lm-eval that has its name.
    local = {choice.task for folder in selection.folders for choice in _local(folder)}
    selection.built_in = any(choice.task not in local for choice in selection.choices)
    if config.num_fewshot is not None:
        selection.choices = [
            Choice(choice.task, config.num_fewshot, choice.metric) for choice in selection.choices
        ]
        selection.suites = []
    _check_once(selection.choices, prefix)
    return selection


def _check_once(choices: list[Choice], prefix: str) -> None:
    """Raises InputError where a task is asked for in two ways: results have one place for it."""
    seen: dict[str, Choice] = {}
    for choice in choices:
        other = seen.setdefault(choice.task, choice)
        if other.num_fewshot != choice.num_fewshot:
            raise InputError(
                f"{prefix}tasks: {choice.task} is asked for with {other.num_fewshot} and with "
                f"{choice.num_fewshot} examples: score suites one after the other, each with its "
                "own out."
            )


def suite_choices(suite: str) -> list[Choice]:
    """The tasks of a suite."""
    entries = yaml.safe_load((CONF_DIR / "tasks" / f"{suite}.yaml").read_text())
    return [Choice(task, **entry) for task, entry in entries.items()]


def known_suites() -> list[str]:
    """Names of the suites in `conf/tasks/`."""
    return sorted(path.stem for path in (CONF_DIR / "tasks").glob("*.yaml"))


def _task_folder(folder: Path, key: str) -> Path:
    if not folder.is_dir():
        raise InputError(f"{key}={folder} is no folder: expected one with lm-eval's task files.")
    if not any(folder.glob("*.yaml")):
        raise InputError(f"{key}={folder} holds no task file (*.yaml).")
    return folder


def _local(folder: Path) -> list[Choice]:
    """The tasks of a folder's files.

    Raises:
        InputError: a data file that one of them reads is gone.
    """
    choices = []
    for path in sorted(folder.glob("*.yaml")):
        content = yaml.load(path.read_text(), Loader=yaml.BaseLoader)
        if not isinstance(content, dict) or "task" not in content:
            raise InputError(f"{path} is no task file of lm-eval: it has no key 'task'.")
        files = content.get("dataset_kwargs", {}).get("data_files", {})
        for file in files.values() if isinstance(files, dict) else [files]:
            if "://" not in str(file) and not Path(file).is_file():
                raise InputError(f"{path} reads {file}, which does not exist: build it again.")
        choices.append(Choice(content.get("group") or content["task"]))
    return choices
