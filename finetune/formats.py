"""The formats of tuning data, each recognized by its columns.

The data sets that Danube was tuned on (arXiv 2401.16818, section 6) are read as their authors
publish them. Each converter returns rows in one of the two forms of `finetune/rows.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from conf.errors import InputError, one_of
from finetune.oasst import best_against_worst, best_conversations
from finetune.sources import PlacedRow

AUTO = "auto"


@dataclass(frozen=True)
class Format:
    """A format of tuning data.

    columns: the columns that every row must have.
    convert: converts one row.
    convert_tree: converts all rows at once, for a format whose rows refer to each other.
    public: True for a published data set, whose rows without an answer, or with the same answer
        twice, are skipped and counted. In other data such rows are errors.
    """

    columns: tuple[str, ...]
    convert: Callable[[dict[str, Any]], dict[str, Any]] = dict
    convert_tree: Callable[[Iterator[PlacedRow], str], Iterator[PlacedRow]] | None = None
    public: bool = True


def _prompt(system: str | None, question: str) -> list[dict[str, Any]]:
    first = [{"role": "system", "content": system}] if system else []
    return [*first, {"role": "user", "content": question}]


def _openorca(row: dict[str, Any]) -> dict[str, Any]:
    prompt = _prompt(row["system_prompt"], row["question"])
    return {"prompt": prompt, "completion": row["response"]}


def _metamathqa(row: dict[str, Any]) -> dict[str, Any]:
    return {"prompt": row["query"], "completion": row["response"]}


def _messages(row: dict[str, Any]) -> dict[str, Any]:
    return {"messages": row["messages"]}


def _intel_orca(row: dict[str, Any]) -> dict[str, Any]:
    prompt = _prompt(row["system"], row["question"])
    return {"prompt": prompt, "chosen": row["chosen"], "rejected": row["rejected"]}


def _math_preference(row: dict[str, Any]) -> dict[str, Any]:
    return {
        "prompt": row["instruction"],
        "chosen": row["chosen_response"],
        "rejected": row["rejected_response"],
    }


OASST = ("message_id", "text", "role", "lang")  # some rows also have parent_id and rank
PREFERENCE = ("prompt", "chosen", "rejected")

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
    "oasst2": Format(OASST, convert_tree=best_conversations),
}
"""Formats that `sft` reads."""

PAIRS = {
    "pairs": Format(PREFERENCE, public=False),
    # HuggingFaceH4/ultrafeedback_binarized
    "ultrafeedback": Format((*PREFERENCE, "prompt_id", "score_chosen", "score_rejected")),
    # Intel/orca_dpo_pairs
    "intel_orca": Format(("system", "question", "chosen", "rejected"), _intel_orca),
    # argilla/distilabel-math-preference-dpo
    "math_preference": Format(
        ("instruction", "chosen_response", "rejected_response"), _math_preference
    ),
    "oasst2": Format(OASST, convert_tree=best_against_worst),
}
"""Formats that `dpo` reads."""


def choose_format(formats: dict[str, Format], name: str, row: dict[str, Any], place: str) -> Format:
    """Returns the format with this name, or for `auto` the one whose columns the row has.

    If several formats match, the one whose columns include those of all others is returned.

    Raises:
        InputError: the name is unknown, or no single format matches.
    """
    if name != AUTO:
        one_of("format", name, (AUTO, *formats))
        return formats[name]
    fits = {key: set(format.columns) for key, format in formats.items() if has_columns(format, row)}
    widest = [key for key in fits if all(fits[key] >= other for other in fits.values())]
    if len(widest) == 1:
        return formats[widest[0]]
    known = "; ".join(f"{key} ({', '.join(format.columns)})" for key, format in formats.items())
    keys = " and ".join(f"'{key}'" for key in row) or "none"
    if fits:
        raise InputError(
            f"{place}: the keys {keys} match several formats, {' and '.join(fits)}. "
            "Choose one with format=..."
        )
    for command, others in (("sft", ANSWERS), ("dpo", PAIRS)):
        for key, format in others.items():
            if formats is not others and has_columns(format, row):
                raise InputError(
                    f"{place}: the keys {keys} are those of the format {key}, which only "
                    f"python -m finetune {command} reads. Use that command, or give other data."
                )
    raise InputError(f"{place}: expected the keys of one of {known}, found {keys}.")


def has_columns(format: Format, row: dict[str, Any]) -> bool:
    """Returns whether the row has all columns of the format."""
    return all(column in row for column in format.columns)
