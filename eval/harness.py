"""`python -m eval lm_eval`: models side by side on tasks of lm-eval.

A model is a stock Hugging Face folder, run by lm-eval's own `hf` model with no code of ours. The
file of results is written after every model, so that an interrupted call goes on where it was.
"""

from __future__ import annotations

import io
import json
import logging
import math
import os
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, redirect_stderr
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from conf.errors import InputError, did_you_mean
from eval.devices import device_of
from eval.files import digest_of, write_text
from eval.results import FORMAT, load_results, table
from eval.suites import LmEvalConfig, Selection, known_suites, select

if TYPE_CHECKING:
    from lm_eval.tasks import TaskManager

LOG_WIDTH = 120
"""In columns, where the output goes to a file: names of tasks are long."""
PACKAGES = ("lm_eval", "torch", "transformers", "datasets")


def lm_eval(config: LmEvalConfig) -> None:
    """Scores every model, prints the table and writes `out`.

    Raises:
        InputError: a model folder or a task does not exist, or a data set cannot be had.
    """
    console = Console(width=None if sys.stdout.isatty() else LOG_WIDTH)
    folders = {name: model_folder(name, path) for name, path in config.models.items()}
    selection = select(config)
    out = Path(config.out)
    known = {}
    if out.exists() and not config.overwrite:
        known = load_results(out, "out")["models"]
    prints = {name: fingerprint(folder, selection, config) for name, folder in folders.items()}
    done = {name: known[name] for name in known if known[name]["fingerprint"] == prints.get(name)}
    manager = None
    for name, folder in folders.items():
        if name in done:
            console.print(f"{name}: done already", highlight=False)
            continue
        with quiet(offline=not selection.built_in):
            if manager is None:
                console.print("loading tasks", highlight=False)
                manager = load_tasks(selection)
            console.print(f"{name}: {folder}", highlight=False, soft_wrap=True)
            started = time.perf_counter()
            tasks = score(folder, selection, manager, config)
        done[name] = {
            "folder": str(folder),
            "fingerprint": prints[name],
            "seconds": round(time.perf_counter() - started, 1),
            "settings": {"dtype": config.dtype, "limit": config.limit, "chat": config.chat},
            "tasks": tasks,
        }
        write_text(out, json.dumps(side_by_side(done, folders), indent=1))
    results = side_by_side(done, folders)
    write_text(out, json.dumps(results, indent=1))
    console.print(table(results))
    console.print(f"{out}: {len(folders)} models", highlight=False, soft_wrap=True)


def side_by_side(done: dict[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """The content of the file of results, with what is done so far in the order asked for."""
    return {
        "format": FORMAT,
        "packages": {package: metadata.version(package) for package in PACKAGES},
        "models": {name: done[name] for name in names if name in done},
    }


def model_folder(name: str, path: str) -> Path:
    """The folder of a model; raises InputError where it is none."""
    folder = Path(path)
    if not (folder / "config.json").is_file():
        raise InputError(
            f"models.{name}={path} is no Hugging Face folder: it has no config.json; "
            "export a run with python -m pretrain export."
        )
    return folder


def fingerprint(folder: Path, selection: Selection, config: LmEvalConfig) -> str:
    """sha256 of what decides the scores: weights, tokenizer, tasks, settings, versions."""
    files = [path for end in ("safetensors", "json", "jinja") for path in folder.glob(f"*.{end}")]
    local = [path for tasks in selection.folders for path in tasks.iterdir() if path.is_file()]
    asked = [[choice.task, choice.num_fewshot, choice.metric] for choice in selection.choices]
    versions = [metadata.version(package) for package in PACKAGES]
    return digest_of(
        [*files, *local], asked, config.limit, config.chat, config.dtype, config.device, versions
    )


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


def load_tasks(selection: Selection) -> TaskManager:
    """Indexes the tasks and loads the data of those that are asked for.

    Raises:
        InputError: a task is unknown, or its data set is neither here nor reachable.
    """
    from lm_eval.tasks import TaskManager

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
            raise InputError(f"tasks={choice.task}: lm-eval has no such task{hint}.")
    for choice in selection.choices:
        try:
            manager.load([choice.task])
        except (OSError, ValueError) as error:
            raise InputError(
                f"tasks={choice.task}: its data set is not in the cache of this machine and could "
                f"not be fetched ({str(error).splitlines()[0]}); fill the cache where there is a "
                "network and copy it here (HF_HOME), or use tasks=local."
            ) from None
    return manager


def _close(name: str, names: list[str]) -> str:
    """Like did_you_mean, for lists that are too long to print."""
    hint = did_you_mean(name, names)
    return hint if "did you mean" in hint else ""


def score(
    folder: Path, selection: Selection, manager: TaskManager, config: LmEvalConfig
) -> dict[str, dict[str, Any]]:
    """Scores of one model by task, in the order in which the tasks are asked for."""
    import lm_eval.models  # noqa: F401  (before anything else registers a model: it would hide these)
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    model = HFLM(
        pretrained=str(folder),
        dtype=config.dtype,
        batch_size=config.batch_size,
        device=device_of(config.device),
    )
    scored: dict[str, dict[str, Any]] = {}
    # lm-eval takes one number of examples for all tasks of a call.
    for shots in {choice.num_fewshot: None for choice in selection.choices}:
        chosen = [choice for choice in selection.choices if choice.num_fewshot == shots]
        found = simple_evaluate(
            model=model,
            tasks=[choice.task for choice in chosen],
            task_manager=manager,
            num_fewshot=shots,
            limit=config.limit,
            apply_chat_template=config.chat,
            bootstrap_iters=1000,
        )
        assert found is not None
        shown = {choice.task: choice.metric for choice in chosen}
        groups = {task: group for group, tasks in found["group_subtasks"].items() for task in tasks}
        for task in found["results"]:
            group = None if task in shown else groups.get(task)
            scored[task] = entry(found, task) | {"shown": shown.get(task), "group": group}
    asked = [choice.task for choice in selection.choices]
    order = {**dict.fromkeys(asked), **dict.fromkeys(scored)}
    return {task: scored[task] for task in order if task in scored}


def entry(found: Any, task: str) -> dict[str, Any]:
    """What lm-eval found for a task, in the form of `eval.results`."""
    tasks = leaves(found, task)
    samples = [sample for leaf in tasks for sample in found["samples"].get(leaf, [])]
    metrics = {}
    for key, value in found["results"][task].items():
        metric, _, filtered = key.partition(",")
        if not isinstance(value, float | int) or metric.endswith("_stderr") or not filtered:
            continue
        stderr = found["results"][task].get(f"{metric}_stderr,{filtered}")
        if metric == "bits_per_byte" and samples:
            stderr = bits_per_byte_stderr([sample[metric] for sample in samples])
        name = metric if filtered == "none" else key
        known = isinstance(stderr, float | int) and not math.isnan(stderr)
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
    }


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
