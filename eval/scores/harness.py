"""`python -m eval lm_eval`: models side by side on tasks of lm-eval.

A model is a stock Hugging Face folder, run by lm-eval's own `hf` model with no code of ours. The
file of results is written after every model, so that an interrupted call goes on where it was.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from conf.errors import InputError
from conf.output_kinds import RESULTS
from conf.outputs import Output
from conf.wandb_run import check_key, open_run
from eval.chat.devices import device_of, dtype_of
from eval.chat.find_model import find_model
from eval.files import digest_of
from eval.scores.published import printed, suite_tables
from eval.scores.results import FORMAT, load_results, rows, table
from eval.tasks.load import index_tasks, load_tasks, quiet, score_tasks
from eval.tasks.suites import LmEvalConfig, Selection, select

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
    # Scores are added to those that are there, and replace those of the same model.
    output = Output(config.out, RESULTS, overwrite=True, inputs=[*config.models.values()])
    output.check_foreign()
    config.logger.check_wandb_only()
    check_key(config.logger)
    console = Console(width=None if sys.stdout.isatty() else LOG_WIDTH)
    if config.check:
        selection = select(config)
        with quiet(offline=True):
            index_tasks(selection)
        print("tasks:", ", ".join(choice.task for choice in selection.choices))
        return
    folders = {name: find_model(path, f"models.{name}") for name, path in config.models.items()}
    selection = select(config)
    if config.chat:
        check_templates(folders)
    out = Path(config.out)
    known = {}
    if out.exists() and not config.overwrite:
        known = load_results(out, "out")["models"]
        others = ", ".join(name for name in known if name not in folders)
        if others:
            raise InputError(
                f"out={out} holds the scores of {others}, which would be lost: name them among "
                "models too, take another file (compare and report read several), or give "
                "overwrite=true."
            )
    place = device_of(config.device)
    dtypes = {
        name: dtype_of(config.dtype, folder, place, f"models.{name}")
        for name, folder in folders.items()
    }
    prints = {
        name: fingerprint(folder, selection, config, dtypes[name])
        for name, folder in folders.items()
    }
    done = {name: known[name] for name in known if known[name]["fingerprint"] == prints.get(name)}
    manager = None
    for name, folder in folders.items():
        if name in done:
            console.print(f"{name}: done already", highlight=False)
            continue
        with quiet(offline=not selection.built_in):
            if manager is None:
                console.print("loading tasks", highlight=False)
                manager = load_tasks(selection, limit=config.limit)
            console.print(f"{name}: {folder}", highlight=False, soft_wrap=True)
            started = time.perf_counter()
            tasks, computed = score(folder, selection, manager, config, dtypes[name])
        done[name] = {
            "folder": str(folder),
            "weights": digest_of(weights_and_tokenizer(folder)),
            "fingerprint": prints[name],
            "seconds": round(time.perf_counter() - started, 1),
            "settings": {
                "dtype": config.dtype,
                "computed_in": computed,
                "limit": config.limit,
                "chat": config.chat,
                "suites": selection.suites,
            },
            "tasks": tasks,
        }
        output.write(json.dumps(side_by_side(done, folders), indent=1))
    results = side_by_side(done, folders)
    output.write(json.dumps(results, indent=1))
    console.print(table(results))
    for suite in suite_tables(results):
        console.print(printed(suite))
    if config.logger.wandb != "disabled":
        log(config, results)
    console.print(f"{out}: {len(folders)} models", highlight=False, soft_wrap=True)


def check_templates(folders: dict[str, Path]) -> None:
    """Raises InputError where a model has no chat template."""
    from transformers import AutoTokenizer

    for name, folder in folders.items():
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        if not tokenizer.chat_template:
            raise InputError(
                f"chat=true: models.{name}={folder} has no chat template: tune it first (python -m "
                "finetune sft), or score it in a call of its own without chat."
            )


def log(config: LmEvalConfig, results: dict[str, Any]) -> None:
    """Puts the scores into a run of Weights & Biases, a line of its table for each."""
    import wandb

    out = Path(config.out)
    run = open_run(config.logger, out.stem, out.parent, {"models": config.models})
    lines = [
        [model, task, metric, score["value"], score["stderr"]]
        for task, metric, scores in rows(results)
        for model, score in scores.items()
    ]
    columns: list[str | int] = ["model", "task", "metric", "value", "stderr"]
    run.log({"eval/scores": wandb.Table(columns=columns, data=lines)})
    for model, task, metric, value, _ in lines:
        run.summary[f"eval/{model}/{task}/{metric}"] = value
    run.finish()


def side_by_side(done: dict[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """The content of the file of results, with what is done so far in the order asked for."""
    return {
        "format": FORMAT,
        "packages": {package: metadata.version(package) for package in PACKAGES},
        "models": {name: done[name] for name in names if name in done},
    }


def fingerprint(folder: Path, selection: Selection, config: LmEvalConfig, dtype: str) -> str:
    """sha256 of what decides the scores: weights, tokenizer, tasks, settings, versions. dtype: what
    the model is computed in."""
    local = [path for tasks in selection.folders for path in tasks.iterdir() if path.is_file()]
    asked = [[choice.task, choice.num_fewshot, choice.metric] for choice in selection.choices]
    versions = [metadata.version(package) for package in PACKAGES]
    return digest_of(
        [*weights_and_tokenizer(folder), *local],
        asked,
        config.limit,
        config.chat,
        dtype,
        config.device,
        versions,
    )


def weights_and_tokenizer(folder: Path) -> list[Path]:
    """The files of a folder that decide what its model says."""
    ends = ("safetensors", "bin", "json", "jinja", "model", "txt")
    return [path for end in ends for path in folder.glob(f"*.{end}")]


def score(
    folder: Path, selection: Selection, manager: TaskManager, config: LmEvalConfig, dtype: str
) -> tuple[dict[str, dict[str, Any]], str]:
    """Returns the scores of one model by task, in the order in which the tasks are asked for, and
    the type that it was computed in."""
    from eval.scores.hf_lm import CheckedHFLM

    model = CheckedHFLM(
        pretrained=str(folder),
        dtype=dtype,
        batch_size=config.batch_size,
        device=device_of(config.device),
    )
    tasks = score_tasks(model, selection, manager, config.limit, config.chat)
    return tasks, str(model.model.dtype).removeprefix("torch.")
