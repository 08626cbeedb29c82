"""Finds lm-eval tasks, loads their data and checks their samples."""

from __future__ import annotations

import io
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import TYPE_CHECKING, Any

from conf.errors import InputError, did_you_mean
from eval.tasks import squad_metrics
from eval.tasks.suites import Selection, known_suites
from eval.tasks.targets import unanswerable

if TYPE_CHECKING:
    from lm_eval.tasks import TaskManager


@contextmanager
def quiet(*, offline: bool) -> Iterator[None]:
    """Silences lm-eval and its libraries, except for progress bars on a terminal.

    offline: forbids access to the Hub, for the rest of the process.
    """
    if offline:
        os.environ["HF_HUB_OFFLINE"] = "1"
    import datasets
    import transformers

    datasets.disable_progress_bars()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    for library in ("lm_eval", "huggingface_hub"):
        logging.getLogger(library).setLevel(logging.ERROR)
    with redirect_stderr(sys.stderr if sys.stderr.isatty() else io.StringIO()):
        yield


@contextmanager
def replaced(owner: Any, **values: Any) -> Iterator[None]:
    """Temporarily replaces attributes of an lm-eval object, ignoring those that it lacks."""
    originals = {name: getattr(owner, name) for name in values if hasattr(owner, name)}
    for name in originals:
        setattr(owner, name, values[name])
    try:
        yield
    finally:
        for name, value in originals.items():
            setattr(owner, name, value)


def print_on_main(sentence: str) -> None:
    """Prints a sentence on rank 0 only."""
    if os.environ.get("RANK", "0") == "0":
        print(sentence, flush=True)


def index_tasks(selection: Selection, prefix: str = "") -> TaskManager:
    """Returns a task manager that knows the selected tasks, without loading data.

    prefix: prefix of the setting `tasks` in error messages.

    Raises:
        InputError: a task is unknown.
    """
    from lm_eval.tasks import TaskManager

    squad_metrics.install()
    manager = TaskManager(
        include_path=[str(folder) for folder in selection.folders] or None,
        include_defaults=selection.built_in,
    )
    for choice in selection.choices:
        if choice.task not in manager.all_tasks:
            names = [*manager.all_tasks, *known_suites(), "local"]
            hint = did_you_mean(choice.task, names)
            if len(names) >= 30 and "did you mean" not in hint:  # too many names to list
                hint = ""
            raise InputError(f"{prefix}tasks={choice.task}: lm-eval has no such task{hint}.")
    return manager


def load_tasks(selection: Selection, prefix: str = "", limit: int | None = None) -> TaskManager:
    """Finds the selected tasks, loads their data and checks that samples have correct answers.

    Prints which of lm-eval's own tasks have samples without a correct answer.

    limit: number of samples per task that will be scored, None for all.

    Raises:
        InputError: a task is unknown, its data set is neither cached nor reachable, or its samples
            have no correct answer.
    """
    manager = index_tasks(selection, prefix)
    for choice in selection.choices:
        try:
            loaded = _load(manager, choice.task)
        except IndexError:
            raise InputError(
                f"{prefix}tasks={choice.task}: the task has no samples, or its first sample has an "
                "empty choice. Correct its data, or remove the task."
            ) from None
        except (OSError, ValueError) as error:
            from huggingface_hub.constants import HF_HOME

            raise InputError(
                f"{prefix}tasks={choice.task}: the task's data set "
                f"{data_set(manager, choice.task)} is not in this machine's cache ({HF_HOME}) and "
                f"could not be downloaded ({str(error).splitlines()[0]}). Run python -m eval fetch "
                f"tasks={choice.task} on a machine with a network and copy its HF_HOME folder to "
                "this machine, or put a task of the same name with its own rows into task_folder."
            ) from None
        for name, task in loaded.items():
            _check_answers(
                task, _is_local(manager, name, selection), f"{prefix}tasks={name}", limit
            )
    return manager


def data_set(manager: TaskManager, task: str) -> str:
    """Returns the data set of a task, or of the first task of a group or tag."""
    index = manager.task_index
    config: dict[str, Any] = index[task].cfg or {}
    if "dataset_path" in config:
        parts = (config.get("dataset_path"), config.get("dataset_name"))
        return " ".join(str(part) for part in parts if part)
    members = config.get("task")
    listed = members if isinstance(members, list) else []
    names = [member if isinstance(member, str) else member.get("task") for member in listed]
    names += [name for name, entry in index.items() if task in entry.tags]
    first = next((name for name in names if name in index and name != task), None)
    return data_set(manager, first) if first else "(several data sets)"


def _load(manager: TaskManager, name: str) -> dict[str, Any]:
    """Loads a task, group or tag by name, and returns its tasks.

    On loading, lm-eval indexes the choices of the first sample by its target, and fails if there is
    no such choice. The task is then loaded with its targets as text, so that it can be checked.
    """
    from lm_eval.api.task import ConfigurableTask

    doc_to_target = ConfigurableTask.doc_to_target

    def target_as_text(task: Any, *doc: Any) -> Any:
        target = doc_to_target(task, *doc)
        return str(target) if isinstance(target, int) else target

    try:
        return manager.load([name])["tasks"]
    except IndexError:
        with replaced(ConfigurableTask, doc_to_target=target_as_text):
            return manager.load([name])["tasks"]


def _check_answers(task: Any, is_local: bool, key: str, limit: int | None) -> None:
    """Raises InputError if all samples lack a correct answer, or some samples of a local task do.

    Some of lm-eval's own tasks have such samples on purpose. For these tasks, and for tasks that
    generate text, only a note is printed.
    """
    problem = unanswerable(task, limit)
    if problem is None:
        return
    sentence, applies_to_all = problem
    if (applies_to_all or is_local) and task.OUTPUT_TYPE != "generate_until":
        raise InputError(f"{key}: {sentence}.")
    print_on_main(f"{key}: {sentence}.")


def _is_local(manager: TaskManager, name: str, selection: Selection) -> bool:
    """Returns True if a task is defined in one of the user's folders."""
    entry = manager.task_index.get(name)
    path = None if entry is None else entry.yaml_path
    folders = [folder.resolve() for folder in selection.folders]
    return path is not None and any(Path(path).resolve().is_relative_to(f) for f in folders)
