"""Whether the samples of a task can be answered rightly at all.

lm-eval scores a sample whose target is none of its choices as wrong, whatever the model says: a
letter where it wants a number, labels counted from 1, an answer that is spelled differently.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice
from typing import Any


def unanswerable(task: Any, limit: int | None = None) -> tuple[str, bool] | None:
    """Returns what is wrong with samples of a loaded task, as a sentence, and whether it is wrong
    with all of them; None where nothing is.

    limit: samples to look at, None for all.
    """
    kind = getattr(task, "OUTPUT_TYPE", None)
    config = getattr(task, "config", None)
    if kind is None or callable(getattr(config, "process_results", None)):
        return None  # it judges answers by code of its own
    bad = total = 0
    first = ""
    for number, doc in enumerate(islice(task.eval_docs, limit)):
        total += 1
        if wrong := _wrong(task, kind, doc):
            bad += 1
            first = first or f"sample {number} {wrong}"
    if not bad:
        return None
    what, advice = ADVICE.get(kind, ("target", "expected text"))
    name = config.task if config is not None else type(task).__name__
    return f"{bad} of {total} samples of {name} have no {what}: {first}; {advice}", bad == total


ADVICE = {
    "multiple_choice": (
        "right choice",
        "a target is a number, counted from 0, or the text of one of the choices",
    ),
    "loglikelihood_rolling": ("text", "expected text to score"),
}
"""Of a kind of task: what a sample lacks, and what is expected."""


def _wrong(task: Any, kind: str, doc: Mapping[str, Any]) -> str:
    """Returns what is wrong with a sample, or an empty string."""
    try:
        if kind != "multiple_choice":
            target = task.doc_to_target(doc)
            return "" if _says_something(target) else f"has the target {target!r:.40}"
        choices = task.doc_to_choice(doc)
        target = task.doc_to_text(doc) if task.multiple_input else task.doc_to_target(doc)
    except (LookupError, TypeError, ValueError, SyntaxError) as error:
        return f"has no target or choices that lm-eval can read ({error})"
    if not isinstance(choices, list) or not all(isinstance(choice, str) for choice in choices):
        return f"has the choices {choices!r:.60}, which are not a list of texts"
    if not choices:
        return "has no choices"
    if isinstance(target, list) != bool(task.multiple_target):
        return f"has the target {target!r:.40}, while the first sample has one of another kind"
    if isinstance(target, list) and all(isinstance(one, int) for one in target):
        right = any(is_choice(one, choices) for one in target)
    else:
        right = is_choice(target, choices)
    if right:
        return ""
    return f"has the target {target!r:.40} and the choices {choices!r:.60}"


def is_choice(target: object, choices: list[str]) -> bool:
    """Returns whether a target, as lm-eval compares it, is one of the choices."""
    if isinstance(target, str):
        return target in choices
    return isinstance(target, int | float) and target in range(len(choices))


def _says_something(target: object) -> bool:
    if isinstance(target, list):
        return any(_says_something(one) for one in target)
    return target is not None and str(target) != ""
