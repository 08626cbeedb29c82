"""`python -m eval lm_eval`: scores models on lm-eval tasks and prints them side by side.

Each model is a stock Hugging Face folder, run by lm-eval's own `hf` model, or by a server that has
loaded it (`endpoint=`). The result file is
written after every model. If an interrupted call is repeated, it skips the finished models.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from conf.errors import InputError
from conf.output_kinds import RESULTS
from conf.outputs import Output
from conf.text import table_console
from conf.wandb_run import check_key, open_run
from eval.devices import resolve_device, resolve_dtype
from eval.files import digest_of
from eval.find_model import find_model
from eval.scores.config import LmEvalConfig
from eval.scores.published import render_suite, suite_tables
from eval.scores.results import FORMAT, load_results, rows, scores_table
from eval.tasks.load import index_tasks, load_tasks, quiet
from eval.tasks.score import score_tasks
from eval.tasks.suites import Selection, select

if TYPE_CHECKING:
    from lm_eval.tasks import TaskManager

ENDPOINT = "endpoint "
"""Start of the text that states, in place of a dtype, where a model was computed."""
PACKAGES = ("lm_eval", "torch", "transformers", "datasets")
"""Packages whose versions may change scores."""


def lm_eval(config: LmEvalConfig) -> None:
    """Scores every model, prints the table and writes `out`.

    Raises:
        InputError: a model, task or data set is missing.
    """
    # An existing file is extended; only the scores of the same models are replaced.
    output = Output(config.out, RESULTS, overwrite=True, inputs=[*config.models.values()])
    output.check_foreign()
    config.logger.check_wandb_only()
    check_key(config.logger)
    console = table_console()
    if config.check:
        selection = select(config)
        with quiet(offline=True):
            index_tasks(selection)
        print("tasks:", ", ".join(choice.task for choice in selection.choices))
        return
    folders = {name: find_model(path, f"models.{name}") for name, path in config.models.items()}
    selection = select(config)
    if config.chat:
        check_chat_templates(folders)
    stored = stored_scores(config)
    device = resolve_device(config.device)
    dtypes = {
        name: f"{ENDPOINT}{config.endpoint}"
        if config.endpoint is not None
        else resolve_dtype(config.dtype, folder, device, f"models.{name}")
        for name, folder in folders.items()
    }
    fingerprints = {
        name: fingerprint(folder, selection, config, dtypes[name])
        for name, folder in folders.items()
    }
    done = {
        name: model for name, model in stored.items() if model["fingerprint"] == fingerprints[name]
    }
    manager = None
    for name, folder in folders.items():
        if name in done:
            console.print(f"{name}: already scored")
            continue
        with quiet(offline=not selection.built_in):
            if manager is None:
                console.print("loading tasks")
                manager = load_tasks(selection, limit=config.limit)
            console.print(f"{name}: {folder}", soft_wrap=True)
            started = time.perf_counter()
            tasks, computed_in = score_model(folder, selection, manager, config, dtypes[name])
        done[name] = {
            "folder": str(folder),
            "weights": digest_of(weights_and_tokenizer(folder)),
            "fingerprint": fingerprints[name],
            "seconds": round(time.perf_counter() - started, 1),
            "settings": {
                "dtype": config.dtype,
                "computed_in": computed_in,
                "limit": config.limit,
                "chat": config.chat,
                "suites": selection.suites,
            },
            "tasks": tasks,
        }
        output.write(json.dumps(results_content(done, folders), indent=1))
    results = results_content(done, folders)
    output.write(json.dumps(results, indent=1))
    console.print(scores_table(results))
    for suite in suite_tables(results):
        console.print(render_suite(suite))
    if config.logger.wandb != "disabled":
        log_scores(config, results)
    console.print(f"{config.out}: {len(folders)} models", soft_wrap=True)


def stored_scores(config: LmEvalConfig) -> dict[str, Any]:
    """Returns the models in an existing result file, which this call extends.

    Raises:
        InputError: the file holds models that would be lost.
    """
    out = Path(config.out)
    if config.overwrite or not out.exists():
        return {}
    models: dict[str, Any] = load_results(out, "out")["models"]
    others = ", ".join(name for name in models if name not in config.models)
    if others:
        raise InputError(
            f"out={out}: the file has scores of {others}, which would be lost. Add these models to "
            "models, choose another file (compare reads several), or use overwrite=true."
        )
    return models


def check_chat_templates(folders: dict[str, Path]) -> None:
    """Raises InputError if a model has no chat template."""
    from transformers import AutoTokenizer

    for name, folder in folders.items():
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        if not tokenizer.chat_template:
            raise InputError(
                f"chat=true: models.{name}={folder} has no chat template. Tune this model first "
                "(python -m finetune sft), or score it in a separate call without chat."
            )


def log_scores(config: LmEvalConfig, results: dict[str, Any]) -> None:
    """Logs the scores to Weights & Biases as a table with one row per score."""
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


def results_content(done: dict[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """Returns the content of the result file, with the finished models in the order of `names`."""
    return {
        "format": FORMAT,
        "packages": {package: metadata.version(package) for package in PACKAGES},
        "models": {name: done[name] for name in names if name in done},
    }


def fingerprint(folder: Path, selection: Selection, config: LmEvalConfig, dtype: str) -> str:
    """Returns the sha256 of everything that determines the scores.

    This covers the weights, tokenizer, tasks, settings, package versions and the dtype that the
    model computes in.
    """
    local = [path for tasks in selection.folders for path in tasks.iterdir() if path.is_file()]
    choices = [[choice.task, choice.num_fewshot, choice.metric] for choice in selection.choices]
    versions = [metadata.version(package) for package in PACKAGES]
    return digest_of(
        [*weights_and_tokenizer(folder), *local],
        choices,
        config.limit,
        config.chat,
        dtype,
        config.device,
        versions,
    )


def weights_and_tokenizer(folder: Path) -> list[Path]:
    """Returns the files of a folder that determine the output of its model."""
    extensions = ("safetensors", "bin", "json", "jinja", "model", "txt")
    return [path for extension in extensions for path in folder.glob(f"*.{extension}")]


def score_model(
    folder: Path, selection: Selection, manager: TaskManager, config: LmEvalConfig, dtype: str
) -> tuple[dict[str, dict[str, Any]], str]:
    """Returns the scores of one model by task, and the dtype or endpoint that computed them."""
    if config.endpoint is not None:
        from eval.scores.endpoint_lm import endpoint_model

        served = endpoint_model(config, folder)
        tasks = score_tasks(served, selection, manager, config.limit, config.chat)
        return tasks, f"{ENDPOINT}{config.endpoint}"
    from eval.scores.hf_lm import CheckedHFLM

    model = CheckedHFLM(
        pretrained=str(folder),
        dtype=dtype,
        batch_size=config.batch_size,
        device=resolve_device(config.device),
    )
    tasks = score_tasks(model, selection, manager, config.limit, config.chat)
    return tasks, str(model.model.dtype).removeprefix("torch.")
