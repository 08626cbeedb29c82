"""Resolves the setting `tasks`: a local folder, a suite of `conf/tasks/`, or lm-eval task names."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import yaml

from conf.entry import CONF_DIR
from conf.errors import InputError

LOCAL = "local"


@dataclass(frozen=True)
class Choice:
    """A selected task.

    num_fewshot: number of few-shot examples, None for the number that the task defines.
    metric: the metric shown in tables, None for all.
    """

    task: str
    num_fewshot: int | None = None
    metric: str | None = None


@dataclass
class Selection:
    """All selected tasks.

    folders: folders with the user's task files.
    built_in: whether lm-eval's own tasks, whose data sets may be remote, are needed.
    suites: names of the suites that are run exactly as published.
    """

    choices: list[Choice] = field(default_factory=list)
    folders: list[Path] = field(default_factory=list)
    built_in: bool = False
    suites: list[str] = field(default_factory=list)


class TaskSettings(Protocol):
    """The settings that select tasks, documented in `eval.scores.config`."""

    tasks: Any
    task_folder: str | None
    num_fewshot: int | None


def select(settings: TaskSettings, prefix: str = "") -> Selection:
    """Resolves `tasks`, without checking that lm-eval tasks of these names exist.

    prefix: prefix of the settings' names in error messages.

    Raises:
        InputError: a given folder holds no tasks.
    """
    selection = Selection()
    if settings.task_folder is not None:
        selection.folders.append(_task_folder(Path(settings.task_folder), f"{prefix}task_folder"))
    names = settings.tasks if isinstance(settings.tasks, list) else [settings.tasks]
    for name in map(str, names):
        if name == LOCAL:
            if settings.task_folder is None:
                raise InputError(
                    f"{prefix}tasks=local: requires {prefix}task_folder. Give the folder written "
                    "by python -m eval build_tasks."
                )
            selection.choices += _folder_choices(Path(settings.task_folder))
        elif name in known_suites():
            selection.choices += suite_choices(name)
            selection.suites.append(name)
        elif "/" in name or Path(name).is_dir():
            selection.folders.append(_task_folder(Path(name), f"{prefix}tasks"))
            selection.choices += _folder_choices(Path(name))
        else:
            selection.choices.append(Choice(name))
    # A user's task file replaces the lm-eval task with the same name.
    local = {choice.task for folder in selection.folders for choice in _folder_choices(folder)}
    selection.built_in = any(choice.task not in local for choice in selection.choices)
    if settings.num_fewshot is not None:
        selection.choices = [
            Choice(choice.task, settings.num_fewshot, choice.metric) for choice in selection.choices
        ]
        selection.suites = []
    _check_unambiguous(selection.choices, prefix)
    return selection


def _check_unambiguous(choices: list[Choice], prefix: str) -> None:
    """Raises InputError if a task is selected with two different numbers of few-shot examples.

    A result file has only one entry per task.
    """
    seen: dict[str, Choice] = {}
    for choice in choices:
        other = seen.setdefault(choice.task, choice)
        if other.num_fewshot != choice.num_fewshot:
            raise InputError(
                f"{prefix}tasks={choice.task}: the selected suites use {other.num_fewshot} and "
                f"{choice.num_fewshot} few-shot examples. Score the suites in separate calls, each "
                "with its own out."
            )


def suite_choices(suite: str) -> list[Choice]:
    """Returns the tasks of a suite."""
    entries = yaml.safe_load((CONF_DIR / "tasks" / f"{suite}.yaml").read_text())
    return [Choice(task, **entry) for task, entry in entries.items()]


def known_suites() -> list[str]:
    """Returns the names of the suites in `conf/tasks/`."""
    return sorted(path.stem for path in (CONF_DIR / "tasks").glob("*.yaml"))


def _task_folder(folder: Path, key: str) -> Path:
    if not folder.is_dir():
        raise InputError(
            f"{key}={folder}: the folder does not exist. Give a folder of lm-eval task files."
        )
    if not any(folder.glob("*.yaml")):
        raise InputError(
            f"{key}={folder}: the folder has no task file (*.yaml). Give another folder."
        )
    return folder


def _folder_choices(folder: Path) -> list[Choice]:
    """Returns the tasks that a folder's files define.

    Raises:
        InputError: a data file of a task is missing.
    """
    choices = []
    for path in sorted(folder.glob("*.yaml")):
        content = yaml.load(path.read_text(), Loader=yaml.BaseLoader)
        if not isinstance(content, dict) or "task" not in content:
            raise InputError(
                f"{path} is not an lm-eval task file, because the key 'task' is missing. Add this "
                "key."
            )
        files = content.get("dataset_kwargs", {}).get("data_files", {})
        for file in files.values() if isinstance(files, dict) else [files]:
            if "://" not in str(file) and not Path(file).is_file():
                raise InputError(
                    f"{path} reads {file}, which does not exist. Build the tasks again (python -m "
                    "eval build_tasks)."
                )
        choices.append(Choice(content.get("group") or content["task"]))
    return choices
