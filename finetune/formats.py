"""The shapes of data that are understood, each told from the others by its columns.

The data sets that Danube was tuned on (arXiv 2401.16818, section 6) come as their authors publish
them; what each converter makes are the shapes of this project, `finetune/rows.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from conf.errors import InputError, did_you_mean
from finetune.oasst import best_against_worst, best_conversations
from finetune.sources import Placed

AUTO = "auto"


@dataclass(frozen=True)
class Format:
    """columns: all that a row must have. convert: one row; tree: all rows at once, where they
    refer to each other. public: a data set as it is published, whose rows without an answer, or
    with the same answer twice, are left out and counted; in one's own data they are errors."""

    columns: tuple[str, ...]
    convert: Callable[[dict[str, Any]], dict[str, Any]] = dict
    tree: Callable[[Iterator[Placed], str], Iterator[Placed]] | None = None
    public: bool = True


def _asked(system: str | None, question: str) -> list[dict[str, Any]]:
    first = [{"role": "system", "content": system}] if system else []
    return [*first, {"role": "user", "content": question}]


def _openorca(row: dict[str, Any]) -> dict[str, Any]:
    prompt = _asked(row["system_prompt"], row["question"])
    return {"prompt": prompt, "completion": row["response"]}


def _metamathqa(row: dict[str, Any]) -> dict[str, Any]:
    return {"prompt": row["query"], "completion": row["response"]}


def _messages(row: dict[str, Any]) -> dict[str, Any]:
    return {"messages": row["messages"]}


def _intel_orca(row: dict[str, Any]) -> dict[str, Any]:
    prompt = _asked(row["system"], row["question"])
    return {"prompt": prompt, "chosen": row["chosen"], "rejected": row["rejected"]}


def _math_preference(row: dict[str, Any]) -> dict[str, Any]:
    return {
        "prompt": row["instruction"],
        "chosen": row["chosen_response"],
        "rejected": row["rejected_response"],
    }


OASST = ("message_id", "text", "role", "lang")  # and parent_id and rank, where they have one
COMPARED = ("prompt", "chosen", "rejected")

ANSWERS = {
    "completion": Format(("prompt", "completion"), public=False),
    "messages": Format(("messages",), public=False),
    # Open-Orca/OpenOrca
    "openorca": Format(("system_prompt", "question", "response"), _openorca),
    # meta-math/MetaMathQA
    "metamathqa": Format(("query", "response"), _metamathqa),
    # HuggingFaceH4/ultrachat_200k
    "ultrachat": Format(("prompt", "prompt_id", "messages"), _messages),
    # OpenAssistant/oasst2
    "oasst2": Format(OASST, tree=best_conversations),
}
"""What `sft` reads."""

PAIRS = {
    "pairs": Format(COMPARED, public=False),
    # HuggingFaceH4/ultrafeedback_binarized
    "ultrafeedback": Format((*COMPARED, "prompt_id", "score_chosen", "score_rejected")),
    # Intel/orca_dpo_pairs
    "intel_orca": Format(("system", "question", "chosen", "rejected"), _intel_orca),
    # argilla/distilabel-math-preference-dpo
    "math_preference": Format(
        ("instruction", "chosen_response", "rejected_response"), _math_preference
    ),
    "oasst2": Format(OASST, tree=best_against_worst),
}
"""What `dpo` reads."""


def choose(formats: dict[str, Format], name: str, row: dict[str, Any], place: str) -> Format:
    """The format of that name, or for `auto` the one whose columns the row has; where several
    have theirs, the one whose columns include the others'.

    Raises:
        InputError: there is no such format, or no single one fits.
    """
    if name != AUTO:
        if name not in formats:
            raise InputError(
                f"format={name}: expected {AUTO}, {', '.join(formats)}"
                f"{did_you_mean(name, formats)}."
            )
        return formats[name]
    fits = {key: set(format.columns) for key, format in formats.items() if has(format, row)}
    widest = [key for key in fits if all(fits[key] >= other for other in fits.values())]
    if len(widest) == 1:
        return formats[widest[0]]
    known = "; ".join(f"{key} ({', '.join(format.columns)})" for key, format in formats.items())
    keys = " and ".join(f"'{key}'" for key in row) or "none"
    if fits:
        raise InputError(
            f"{place} has the keys {keys}, which fit {' and '.join(fits)}: "
            "say which is meant with format=..."
        )
    for command, others in (("sft", ANSWERS), ("dpo", PAIRS)):
        for key, format in others.items():
            if formats is not others and has(format, row):
                raise InputError(
                    f"{place} has the keys {keys}, which are {key} for python -m finetune "
                    f"{command}: use that, or give other data."
                )
    raise InputError(f"{place} has the keys {keys}: expected those of one of {known}.")


def has(format: Format, row: dict[str, Any]) -> bool:
    """Whether the row has all columns of the format."""
    return all(column in row for column in format.columns)
