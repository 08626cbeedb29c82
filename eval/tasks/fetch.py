"""`python -m eval fetch`: downloads the data sets of tasks, for machines without a network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from omegaconf import MISSING

from eval.tasks.suites import select


@dataclass
class FetchConfig:
    """Configuration of `fetch`.

    tasks: the tasks, given in the same form as for `python -m eval lm_eval`.
    task_folder: folder of task files, as for lm_eval; null for none.
    num_fewshot: number of few-shot examples for all tasks, as for lm_eval.
    """

    tasks: Any = MISSING
    task_folder: str | None = None
    num_fewshot: int | None = None


def fetch(config: FetchConfig) -> None:
    """Loads every task once, which downloads its data set into the cache.

    Raises:
        InputError: a task is unknown, or its data set cannot be downloaded.
    """
    from eval.tasks.load import load_tasks, quiet

    selection = select(config)
    with quiet(offline=not selection.built_in):
        load_tasks(selection)
    from huggingface_hub.constants import HF_HOME

    print(
        f"{HF_HOME} has the data sets of {len(selection.choices)} tasks. Copy this folder to the "
        "other machines."
    )
