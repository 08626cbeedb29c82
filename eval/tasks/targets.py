"""Finds samples of a task that have no correct answer.

lm-eval scores a sample whose target is not one of its choices as wrong for every model. Typical
causes are a letter where a number is expected, labels counted from 1, and a different spelling.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice
from typing import Any


def unanswerable(task: Any, limit: int | None = None) -> tuple[str, bool] | None:
    """Returns a description of the samples without a correct answer, or None if there are none.

    limit: number of samples to check, None for all.

    Returns:
        A sentence, and whether it applies to all samples.
    """
    kind = getattr(task, "OUTPUT_TYPE", None)
    config = getattr(task, "config", None)
    if kind is None or callable(getattr(config, "process_results", None)):
        return None  # the task scores answers with its own code
    bad = total = 0
    first = ""
    for number, doc in enumerate(islice(task.eval_docs, limit)):
        total += 1
        if problem := _problem(task, kind, doc):
            bad += 1
            first = first or f"sample {number} {problem}"
    if not bad:
        return None
    missing, expected = EXPECTED.get(kind, ("target", "a target is text"))
    name = config.task if config is not None else type(task).__name__
    return (
        f"{bad} of {total} samples of {name} have no {missing}: {first}; {expected}",
        bad == total,
    )


EXPECTED = {
    "multiple_choice": (
        "correct choice",
        "a target is a number, counted from 0, or the text of one of the choices",
    ),
    "loglikelihood_rolling": ("text", "a sample is text to score"),
}
"""The part that a sample may lack, and a clause about what is expected, keyed by kind of task."""


def _problem(task: Any, kind: str, doc: Mapping[str, Any]) -> str:
    """Returns a description of what is wrong with a sample, or an empty string."""
    try:
        if kind != "multiple_choice":
            target = task.doc_to_target(doc)
            return "" if _is_nonempty(target) else f"has the target {target!r:.40}"
        choices = task.doc_to_choice(doc)
        target = task.doc_to_text(doc) if task.multiple_input else task.doc_to_target(doc)
    except (LookupError, TypeError, ValueError, SyntaxError) as error:
        return f"has no target or choices that lm-eval can read ({error})"
    if not isinstance(choices, list) or not all(isinstance(choice, str) for choice in choices):
        return f"has the choices {choices!r:.60}, which are not a list of texts"
    if not choices:
        return "has no choices"
    if isinstance(target, list) != bool(task.multiple_target):
        return f"has the target {target!r:.40}, whose type differs from the first sample's"
    if isinstance(target, list) and all(isinstance(one, int) for one in target):
        is_answerable = any(is_choice(one, choices) for one in target)
    else:
        is_answerable = is_choice(target, choices)
    if is_answerable:
        return ""
    return f"has the target {target!r:.40} and the choices {choices!r:.60}"


def is_choice(target: object, choices: list[str]) -> bool:
    """Returns True if a target is one of the choices, compared in the same way as in lm-eval."""
    if isinstance(target, str):
        return target in choices
    return isinstance(target, int | float) and target in range(len(choices))


def _is_nonempty(target: object) -> bool:
    if isinstance(target, list):
        return any(_is_nonempty(one) for one in target)
    return target is not None and str(target) != ""
