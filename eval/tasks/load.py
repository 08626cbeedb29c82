"""Tasks of lm-eval, for any model: finding and loading them, and scores in our form."""

from __future__ import annotations

import hashlib
import io
import logging
import math
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stderr
from pathlib import Path
from typing import TYPE_CHECKING, Any

from conf.errors import InputError, did_you_mean
from eval.tasks import squad
from eval.tasks.suites import Selection, known_suites
from eval.tasks.targets import unanswerable

if TYPE_CHECKING:
    from lm_eval.api.model import LM
    from lm_eval.tasks import TaskManager


@contextmanager
def quiet(*, offline: bool) -> Iterator[None]:
    """Keeps lm-eval and its libraries from talking, but for its bars on a terminal; `offline` where
    nothing remote is asked for."""
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


def index_tasks(selection: Selection, prefix: str = "") -> TaskManager:
    """Finds the tasks that are asked for; loads no data.

    prefix: of the key `tasks` in errors.

    Raises:
        InputError: a task is unknown.
    """
    from lm_eval.tasks import TaskManager

    squad.provide()
    manager = TaskManager(
        include_path=[str(folder) for folder in selection.folders] or None,
        include_defaults=selection.built_in,
    )
    for choice in selection.choices:
        if choice.task not in manager.all_tasks:
            names = [*manager.all_tasks, *known_suites(), "local"]
            hint = (
                did_you_mean(choice.task, names) if len(names) < 30 else _close(choice.task, names)
            )
            raise InputError(f"{prefix}tasks={choice.task}: lm-eval has no such task{hint}.")
    return manager


def load_tasks(selection: Selection, prefix: str = "", limit: int | None = None) -> TaskManager:
    """`index_tasks`, and the data of those that are asked for; says which of lm-eval's own tasks
    have samples without a right answer.

    limit: samples of each task that count, None for all.

    Raises:
        InputError: a task is unknown, its data set is neither here nor reachable, or its samples
            have no right answer.
    """
    manager = index_tasks(selection, prefix)
    for choice in selection.choices:
        try:
            loaded = _load(manager, choice.task)
        except IndexError:
            raise InputError(
                f"{prefix}tasks={choice.task}: it has no samples, or its first one has an empty "
                "choice."
            ) from None
        except (OSError, ValueError) as error:
            from huggingface_hub.constants import HF_HOME

            raise InputError(
                f"{prefix}tasks={choice.task}: its data set {data_set(manager, choice.task)} is "
                f"not in the cache of this machine ({HF_HOME}) and could not be fetched "
                f"({str(error).splitlines()[0]}); run python -m eval fetch tasks={choice.task} "
                "where there is a network and copy its folder HF_HOME here, or give the rows as a "
                "task of the same name in task_folder."
            ) from None
        for name, task in loaded.items():
            _check_answers(
                task, _is_local(manager, name, selection), f"{prefix}tasks={name}", limit
            )
    return manager


def _load(manager: TaskManager, name: str) -> dict[str, Any]:
    """Returns the tasks of a name. lm-eval looks up the choice that the first sample's target
    numbers, which fails where there is no such choice; it is then loaded without that."""
    from lm_eval.api.task import ConfigurableTask

    target_of = ConfigurableTask.doc_to_target

    def spelled(task: Any, *doc: Any) -> Any:
        target = target_of(task, *doc)
        return str(target) if isinstance(target, int) else target

    try:
        return manager.load([name])["tasks"]
    except IndexError:
        with _replaced(ConfigurableTask, doc_to_target=spelled):
            return manager.load([name])["tasks"]


def _check_answers(task: Any, is_local: bool, key: str, limit: int | None) -> None:
    """Raises InputError where no sample of a task has a right answer, or in a task of one's own
    some have none; says so where lm-eval's own task is meant to have such samples."""
    found = unanswerable(task, limit)
    if found is None:
        return
    sentence, all_of_them = found
    if (all_of_them or is_local) and task.OUTPUT_TYPE != "generate_until":
        raise InputError(f"{key}: {sentence}.")
    say_on_main(f"{key}: {sentence}.")


def _is_local(manager: TaskManager, name: str, selection: Selection) -> bool:
    """Returns whether a task comes from a folder of the user's."""
    known = manager.task_index.get(name)
    path = None if known is None else known.yaml_path
    folders = [folder.resolve() for folder in selection.folders]
    return path is not None and any(Path(path).resolve().is_relative_to(f) for f in folders)


def say_on_main(sentence: str) -> None:
    """Prints a sentence on one of the processes."""
    if os.environ.get("RANK", "0") == "0":
        print(sentence, flush=True)


class _Told(logging.Handler):
    """Keeps what lm-eval warns of while it judges answers, each kind once with its count."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.kinds: dict[tuple[str, int], tuple[str, int]] = {}

    def emit(self, record: logging.LogRecord) -> None:
        """Keeps a record."""
        if record.funcName != "process_results" and not record.name.startswith(JUDGES):
            return
        kind = (record.pathname, record.lineno)
        first, count = self.kinds.get(kind, (" ".join(record.getMessage().split()), 0))
        self.kinds[kind] = (first, count + 1)


JUDGES = ("lm_eval.api.metrics", "lm_eval.evaluator_utils", "lm_eval.filters")
"""Modules of lm-eval whose warnings are about scores; those of others are about its settings."""


@contextmanager
def _warnings_told() -> Iterator[None]:
    """Says afterwards what lm-eval warned of within it."""
    logger, told = logging.getLogger("lm_eval"), _Told()
    level, propagates = logger.level, logger.propagate
    logger.setLevel(logging.WARNING)
    logger.propagate = False
    logger.addHandler(told)
    try:
        yield
    finally:
        logger.removeHandler(told)
        logger.setLevel(level)
        logger.propagate = propagates
        for first, count in told.kinds.values():
            say_on_main(f"lm-eval warns {count} times: {first:.200}")


def data_set(manager: TaskManager, task: str) -> str:
    """Where lm-eval finds the rows of a task, or of the first one of a group or tag."""
    index = manager.task_index
    about: dict[str, Any] = index[task].cfg or {}
    if "dataset_path" in about:
        where = (about.get("dataset_path"), about.get("dataset_name"))
        return " ".join(str(part) for part in where if part)
    parts = about.get("task")
    listed = parts if isinstance(parts, list) else []
    names = [part if isinstance(part, str) else part.get("task") for part in listed]
    names += [name for name, entry in index.items() if task in entry.tags]
    found = next((name for name in names if name in index and name != task), None)
    return data_set(manager, found) if found else "(of many parts)"


def _close(name: str, names: list[str]) -> str:
    """Like did_you_mean, for lists that are too long to print."""
    hint = did_you_mean(name, names)
    return hint if "did you mean" in hint else ""


def score_tasks(
    model: LM,
    selection: Selection,
    manager: TaskManager,
    limit: int | None,
    chat: bool = False,
    tells: bool = True,
) -> dict[str, dict[str, Any]]:
    """Scores by task, in the order in which the tasks are asked for; nothing on a process that is
    not the first of its machine (LOCAL_RANK).

    tells: says what lm-eval warns of, and which questions the model does not see whole.
    """
    from lm_eval import evaluator

    scored: dict[str, dict[str, Any]] = {}
    # lm-eval takes one number of examples for all tasks of a call.
    for shots in {choice.num_fewshot: None for choice in selection.choices}:
        chosen = [choice for choice in selection.choices if choice.num_fewshot == shots]
        # It starts programs to describe the machine and the folder's git, a second for each call;
        # no one reads that, and git complains where there is none.
        quick = dict.fromkeys(("add_env_info", "get_git_commit_hash"), lambda *_: None)
        with _replaced(evaluator, **quick), _warnings_told() if tells else nullcontext():
            found = evaluator.simple_evaluate(
                model=model,
                tasks=[choice.task for choice in chosen],
                task_manager=manager,
                num_fewshot=shots,
                limit=limit,
                apply_chat_template=chat,
                bootstrap_iters=1000,
            )
        if found is None:
            continue
        shown = {choice.task: choice.metric for choice in chosen}
        groups = {task: group for group, tasks in found["group_subtasks"].items() for task in tasks}
        for task in found["results"]:
            group = None if task in shown else groups.get(task)
            scored[task] = entry(found, task) | {"shown": shown.get(task), "group": group}
    for task, count in getattr(model, "cut", {}).items() if tells else ():
        say_on_main(
            f"{task}: {count} requests are longer than the model sees and lost their beginning."
        )
    asked = [choice.task for choice in selection.choices]
    order = {**dict.fromkeys(asked), **dict.fromkeys(scored)}
    return {task: scored[task] for task in order if task in scored}


@contextmanager
def _replaced(owner: Any, **values: Any) -> Iterator[None]:
    """Gives an object of lm-eval other attributes within it; those that it does not have are left
    out."""
    found = {name: getattr(owner, name) for name in values if hasattr(owner, name)}
    for name in found:
        setattr(owner, name, values[name])
    try:
        yield
    finally:
        for name, value in found.items():
            setattr(owner, name, value)


def entry(found: Any, task: str) -> dict[str, Any]:
    """What lm-eval found for a task, in the form of `eval.scores.results`."""
    tasks = leaves(found, task)
    samples = [sample for leaf in tasks for sample in found["samples"].get(leaf, [])]
    metrics, singles = {}, {}
    for key, value in found["results"][task].items():
        metric, _, filtered = key.partition(",")
        if not isinstance(value, float | int) or metric.endswith("_stderr") or not filtered:
            continue
        stderr = found["results"][task].get(f"{metric}_stderr,{filtered}")
        if metric == "bits_per_byte" and samples:
            stderr = bits_per_byte_stderr([sample[metric] for sample in samples])
        name = metric if filtered == "none" else key
        known = isinstance(stderr, float | int) and not math.isnan(stderr)
        if each := single_scores(samples, metric, filtered):
            singles[name] = each
        metrics[name] = {"value": float(value), "stderr": float(stderr) if known else None}
    settings = found["configs"].get(tasks[0], {})
    output_type = settings.get("output_type")
    # For mutual information every choice is asked for twice, with the context and without.
    choices = [len(row["resps"]) // (2 if "acc_mutual_info" in row else 1) for row in samples]
    is_choice = output_type == "multiple_choice" and choices
    return {
        "metrics": metrics,
        "samples": sum(found["n-samples"][leaf]["effective"] for leaf in tasks),
        "chance": sum(1 / count for count in choices) / len(choices) if is_choice else None,
        "num_fewshot": found["n-shot"].get(task),
        "version": found["versions"].get(task),
        "output_type": output_type,
        "each": singles,
        "samples_sha256": hashlib.sha256(
            "".join(str(sample["doc_hash"]) for sample in samples).encode()
        ).hexdigest(),
    }


def single_scores(samples: list[dict[str, Any]], metric: str, filtered: str) -> str:
    """A digit for each sample, where a metric is 0 or 1 for all of them; else nothing."""
    scores = [sample.get(metric) for sample in samples if sample.get("filter") == filtered]
    if not scores or any(score not in (0, 1) for score in scores):
        return ""
    return "".join(str(int(score)) for score in scores if score is not None)


def leaves(found: Any, task: str) -> list[str]:
    """The tasks of a group, or the task itself."""
    parts = found["group_subtasks"].get(task)
    return [leaf for part in parts for leaf in leaves(found, part)] if parts else [task]


def bits_per_byte_stderr(samples: list[tuple[float, int]]) -> float | None:
    """Standard error of bits per byte, a ratio of sums over documents, which lm-eval leaves out:
    the linearised variance of a ratio estimator (Cochran, Sampling Techniques, section 2.11).

    samples: (log-likelihood in nats, bytes) of each document.
    """
    count, total = len(samples), sum(size for _, size in samples)
    if count < 2:
        return None
    ratio = sum(loglikelihood for loglikelihood, _ in samples) / total
    spread = sum((loglikelihood - ratio * size) ** 2 for loglikelihood, size in samples)
    return math.sqrt(spread * count / (count - 1)) / total / math.log(2)
