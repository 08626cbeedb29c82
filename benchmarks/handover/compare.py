"""Turns what a tool found in the models into the cells of the table."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks.handover.cases import ASPECTS, NEW_TOKENS, Case

Cells = dict[str, str]
WINDOW_SEEN = 1e-3
"""Smallest effect of a window on a log-probability that counts as one."""


def cells(case: Case, found: dict[str, Any]) -> Cells:
    """Returns the cells of one family.

    found: `tokens`, `log_probabilities`, `greedy` and `rendered` in the form of a Case; a text in
        place of one of them says why it could not be measured; `error` why none could. `context` is
        the context length if that is less than a prompt with its answer.
    """
    if "error" in found:
        return dict.fromkeys(ASPECTS, f"cannot: {found['error']}")
    measures: dict[str, tuple[Callable[[Case, Any], str], str]] = {
        "tokens": (_tokens, "tokens"),
        "log-probabilities": (_scores, "log_probabilities"),
        "greedy text": (
            _greedy_within(found["context"]) if "context" in found else _greedy,
            "greedy",
        ),
        "template": (_template, "rendered"),
        "window": (_window, "log_probabilities"),
    }
    made: Cells = {}
    for aspect, (measure, key) in measures.items():
        value = found.get(key, "the tool does not report it")
        is_reason = isinstance(value, str) and key != "rendered"
        made[aspect] = f"cannot: {value}" if is_reason else measure(case, value)
    return made


def _tokens(case: Case, found: list[list[int]]) -> str:
    equal = sum(a == b for a, b in zip(case.tokens, found, strict=True))
    return "equal" if equal == len(found) else f"{equal} of {len(found)} lines"


def _scores(case: Case, found: list[float]) -> str:
    return f"{_gap(case.log_probabilities, found):.0e}"


def _greedy(case: Case, found: list[list[int]]) -> str:
    equal = sum(a == b for a, b in zip(case.greedy, found, strict=True))
    return f"{equal} of {len(found)} x {NEW_TOKENS}"


def _greedy_within(context: int) -> Callable[[Case, list[list[int]]], str]:
    """Returns the measure of a tool whose texts end at the context length."""

    def measure(case: Case, found: list[list[int]]) -> str:
        room = [max(0, min(NEW_TOKENS, context - len(start))) for start in case.starts]
        expected = [ids[:tokens] for ids, tokens in zip(case.greedy, room, strict=True)]
        equal = sum(a == b for a, b in zip(expected, found, strict=True) if a)
        cut = ", ".join(str(tokens) for tokens in room if tokens)
        return f"{equal} of {sum(map(bool, room))} x {cut}, up to the context"

    return measure


def _template(case: Case, found: str) -> str:
    return "equal" if found == case.rendered else "differs"


def _window(case: Case, found: list[float]) -> str:
    if case.without_window is None:
        return "none"
    effect = _gap(case.log_probabilities, case.without_window)
    assert effect > WINDOW_SEEN, f"{case.family}: the window has no effect on the prompt"
    if len(found) < len(case.log_probabilities):
        return "context capped at it"
    return "honoured" if _gap(case.log_probabilities, found) < effect / 100 else "ignored"


def _gap(a: list[float], b: list[float]) -> float:
    """Returns the largest difference of two lists, over the length of the shorter one."""
    return max(abs(x - y) for x, y in zip(a, b, strict=False))
