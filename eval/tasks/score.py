"""Runs lm-eval's evaluator and converts its results to the format of `eval.scores.results`."""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

from eval.tasks.load import print_on_main, replaced
from eval.tasks.suites import Selection

if TYPE_CHECKING:
    from lm_eval.api.model import LM
    from lm_eval.tasks import TaskManager

SCORING_MODULES = ("lm_eval.api.metrics", "lm_eval.evaluator_utils", "lm_eval.filters")
"""Modules of lm-eval whose warnings are about scores; other modules warn about settings."""


def score_tasks(
    model: LM,
    selection: Selection,
    manager: TaskManager,
    limit: int | None,
    chat: bool = False,
    verbose: bool = True,
) -> dict[str, dict[str, Any]]:
    """Returns the scores by task, in the order of the selection.

    The result is empty on a process that is not the first of its machine (LOCAL_RANK).

    limit: number of samples per task, None for all.
    chat: renders prompts with the model's chat template.
    verbose: prints lm-eval's warnings and the number of truncated requests.
    """
    from lm_eval import evaluator

    scored: dict[str, dict[str, Any]] = {}
    # lm-eval accepts only one number of few-shot examples for all tasks in a call.
    for shots in {choice.num_fewshot: None for choice in selection.choices}:
        chosen = [choice for choice in selection.choices if choice.num_fewshot == shots]
        # lm-eval starts programs to describe the machine and the git repository. This takes a
        # second per call for an unused result, and git prints errors outside a repository.
        disabled = dict.fromkeys(("add_env_info", "get_git_commit_hash"), lambda *_: None)
        with replaced(evaluator, **disabled), _warnings_printed() if verbose else nullcontext():
            output = evaluator.simple_evaluate(
                model=model,
                tasks=[choice.task for choice in chosen],
                task_manager=manager,
                num_fewshot=shots,
                limit=limit,
                apply_chat_template=chat,
                bootstrap_iters=1000,
            )
        if output is None:
            continue
        shown = {choice.task: choice.metric for choice in chosen}
        groups = {
            task: group for group, tasks in output["group_subtasks"].items() for task in tasks
        }
        for task in output["results"]:
            group = None if task in shown else groups.get(task)
            scored[task] = task_entry(output, task) | {"shown": shown.get(task), "group": group}
    for task, count in getattr(model, "truncated", {}).items() if verbose else ():
        print_on_main(
            f"{task}: {count} requests exceed the model's context length and were truncated at the "
            "beginning."
        )
    selected = [choice.task for choice in selection.choices]
    order = {**dict.fromkeys(selected), **dict.fromkeys(scored)}
    return {task: scored[task] for task in order if task in scored}


def task_entry(output: Any, task: str) -> dict[str, Any]:
    """Converts lm-eval's results for a task to the task's entry in a result file."""
    tasks = leaf_tasks(output, task)
    samples = [sample for leaf in tasks for sample in output["samples"].get(leaf, [])]
    metrics, per_sample = {}, {}
    for key, value in output["results"][task].items():
        metric, _, filtered = key.partition(",")
        if not isinstance(value, float | int) or metric.endswith("_stderr") or not filtered:
            continue
        stderr = output["results"][task].get(f"{metric}_stderr,{filtered}")
        if metric == "bits_per_byte" and samples:
            stderr = bits_per_byte_stderr([sample[metric] for sample in samples])
        name = metric if filtered == "none" else key
        known = isinstance(stderr, float | int) and not math.isnan(stderr)
        if digits := sample_digits(samples, metric, filtered):
            per_sample[name] = digits
        metrics[name] = {"value": float(value), "stderr": float(stderr) if known else None}
    settings = output["configs"].get(tasks[0], {})
    output_type = settings.get("output_type")
    # For mutual information, every choice is requested twice: with and without the context.
    choices = [len(row["resps"]) // (2 if "acc_mutual_info" in row else 1) for row in samples]
    is_choice = output_type == "multiple_choice" and choices
    needle = (settings.get("metadata") or {}).get("needle")
    return {
        "metrics": metrics,
        "samples": sum(output["n-samples"][leaf]["effective"] for leaf in tasks),
        "chance": sum(1 / count for count in choices) / len(choices) if is_choice else None,
        "num_fewshot": output["n-shot"].get(task),
        "version": output["versions"].get(task),
        "output_type": output_type,
        "each": per_sample,
        "samples_sha256": hashlib.sha256(
            "".join(str(sample["doc_hash"]) for sample in samples).encode()
        ).hexdigest(),
    } | ({"needle": needle} if needle else {})


def sample_digits(samples: list[dict[str, Any]], metric: str, filtered: str) -> str:
    """Returns one digit per sample if the metric is 0 or 1 for all, else an empty string."""
    scores = [sample.get(metric) for sample in samples if sample.get("filter") == filtered]
    if not scores or any(score not in (0, 1) for score in scores):
        return ""
    return "".join(str(int(score)) for score in scores if score is not None)


def leaf_tasks(output: Any, task: str) -> list[str]:
    """Returns the tasks of a group and its subgroups, or the task itself."""
    parts = output["group_subtasks"].get(task)
    return [leaf for part in parts for leaf in leaf_tasks(output, part)] if parts else [task]


def bits_per_byte_stderr(samples: list[tuple[float, int]]) -> float | None:
    """Returns the standard error of bits per byte, which lm-eval does not report.

    Bits per byte is a ratio of sums over documents; its variance is linearized (Cochran, Sampling
    Techniques, section 2.11).

    samples: (log-likelihood in nats, bytes) of each document.
    """
    count, total = len(samples), sum(size for _, size in samples)
    if count < 2:
        return None
    ratio = sum(loglikelihood for loglikelihood, _ in samples) / total
    spread = sum((loglikelihood - ratio * size) ** 2 for loglikelihood, size in samples)
    return math.sqrt(spread * count / (count - 1)) / total / math.log(2)


class _WarningCounter(logging.Handler):
    """Collects lm-eval's warnings about scores: the first message and the count per kind."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.kinds: dict[tuple[str, int], tuple[str, int]] = {}

    def emit(self, record: logging.LogRecord) -> None:
        """Counts a record under the line of code that logged it."""
        if record.funcName != "process_results" and not record.name.startswith(SCORING_MODULES):
            return
        kind = (record.pathname, record.lineno)
        first, count = self.kinds.get(kind, (" ".join(record.getMessage().split()), 0))
        self.kinds[kind] = (first, count + 1)


@contextmanager
def _warnings_printed() -> Iterator[None]:
    """Prints a summary of lm-eval's warnings at the end of the block."""
    logger, counter = logging.getLogger("lm_eval"), _WarningCounter()
    level, propagates = logger.level, logger.propagate
    logger.setLevel(logging.WARNING)
    logger.propagate = False
    logger.addHandler(counter)
    try:
        yield
    finally:
        logger.removeHandler(counter)
        logger.setLevel(level)
        logger.propagate = propagates
        for first, count in counter.kinds.values():
            print_on_main(f"lm-eval warns {count} times: {first:.200}")
