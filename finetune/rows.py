"""Conversations and pairs, read from any source in any format into two shapes.

A conversation is one of

    {"prompt": [messages], "completion": [messages]}  the answer to a conversation
    {"messages": [messages]}                          every assistant turn is an answer

and a pair is {"prompt": [messages], "chosen": [message], "rejected": [message]}, where a message
is {"role": "system" | "user" | "assistant", "content": "..."}; its content may be a list of text
parts, as OpenAI's clients write them. Text in the place of messages is a user's prompt or an
assistant's answer. Other keys are ignored; one file holds rows of one format.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from conf.chat import text_of
from conf.errors import InputError
from finetune.formats import ANSWERS, AUTO, PAIRS, Format, choose, has
from finetune.sources import Placed, objects

Message = dict[str, str]
Row = dict[str, list[Message]]
Sources = str | Path | list[str]

ROLES = ("system", "user", "assistant")


def read_rows(
    data: Sources, format: str = AUTO, split: str | None = None, language: str = "en"
) -> list[Row]:
    """All conversations of the sources, in their order.

    Raises:
        InputError: a source is missing, empty or unreadable, or a row is no conversation.
    """
    splits = [split] if split else ["train_sft", "train"]
    return _read(data, ANSWERS, format, splits, language, _conversation)


def read_pairs(
    data: Sources, format: str = AUTO, split: str | None = None, language: str = "en"
) -> list[Row]:
    """All pairs of the sources, in their order. `chosen` and `rejected` may repeat the
    conversation before them, as UltraFeedback Binarized does; that is then the prompt, whatever
    'prompt' says, unless 'prompt' ends with it and holds more.

    Raises:
        InputError: a source is missing, empty or unreadable, or a row is no pair.
    """
    splits = [split] if split else ["train_prefs", "train"]
    return _read(data, PAIRS, format, splits, language, _pair)


def fingerprint(rows: list[Row]) -> str:
    """sha256 of what is learned from."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps(row, sort_keys=True).encode() + b"\n")
    return digest.hexdigest()


def names(data: Sources) -> list[str]:
    """The sources as a list."""
    return [str(source) for source in data] if isinstance(data, list) else [str(data)]


def _read(
    data: Sources,
    formats: dict[str, Format],
    name: str,
    splits: list[str],
    language: str,
    check: Callable[[dict[str, Any], str], Row],
) -> list[Row]:
    rows: list[Row] = []
    for source in names(data):
        kept, left_out, reason = 0, 0, ""
        for place, row, format in _converted(source, formats, name, splits, language):
            try:
                rows.append(check(row, place))
                kept += 1
            except InputError as error:
                if not format.public:
                    raise
                reason = reason or str(error)
                left_out += 1
        if not kept:
            why = f": {reason}" if reason else ": expected an example on each line."
            raise InputError(f"data={source} is empty{why}")
        if left_out and os.environ.get("RANK", "0") == "0":
            print(f"{source}: left out {left_out} of {kept + left_out}, the first as {reason}")
    return rows


def _converted(
    source: str, formats: dict[str, Format], name: str, splits: list[str], language: str
) -> Iterator[tuple[str, dict[str, Any], Format]]:
    found = objects(source, splits)
    first = next(found, None)
    if first is None:
        return
    format = choose(formats, name, first[1], first[0])

    def complete() -> Iterator[Placed]:
        for place, row in chain([first], found):
            if not has(format, row):
                raise InputError(
                    f"{place} has the keys {_quote(tuple(row)) or 'none'}: expected "
                    f"{_quote(format.columns)}, as all of a source is of one format."
                )
            yield place, row

    if format.tree:
        for place, row in format.tree(complete(), language):
            yield place, row, format
    else:
        for place, row in complete():
            known = {column: row[column] for column in format.columns}
            yield place, format.convert(known), format


def _conversation(content: dict[str, Any], place: str) -> Row:
    """Two texts become a user's and an assistant's message."""
    keys = ("prompt", "completion") if "completion" in content else ("messages",)
    row = {key: _messages(content, key, place) for key in keys}
    last = list(row)[-1]
    if not any(message["role"] == "assistant" for message in row[last]):
        raise InputError(f"{place}: '{last}' has no assistant message: there is nothing to learn.")
    for message in row[last]:
        if message["role"] == "assistant" and not message["content"].strip():
            raise InputError(f"{place}: '{last}' has an empty assistant message: expected text.")
    return row


def _pair(content: dict[str, Any], place: str) -> Row:
    row = {key: _messages(content, key, place) for key in ("prompt", "chosen", "rejected")}
    if row["chosen"][:-1] != row["rejected"][:-1]:
        raise InputError(f"{place}: 'chosen' and 'rejected' answer different conversations.")
    answers = {key: row[key][-1:] for key in ("chosen", "rejected")}
    for key, (answer,) in answers.items():
        if answer["role"] != "assistant":
            raise InputError(f"{place}: '{key}' ends with the {answer['role']}'s turn.")
        if not answer["content"].strip():
            raise InputError(f"{place}: '{key}' is empty: expected an answer.")
    if answers["chosen"] == answers["rejected"]:
        raise InputError(f"{place}: 'chosen' and 'rejected' are the same answer.")
    repeated = row["chosen"][:-1]
    longer = row["prompt"][-len(repeated) :] == repeated  # by a system message, or earlier turns
    return {"prompt": row["prompt"] if longer or not repeated else repeated, **answers}


def _messages(content: dict[str, Any], key: str, place: str) -> list[Message]:
    messages = content.get(key)
    if isinstance(messages, str) or _is_parts(messages):
        messages = [{"role": "user" if key == "prompt" else "assistant", "content": messages}]
    if not isinstance(messages, list) or not messages:
        raise InputError(f"{place}: '{key}' is {messages!r:.40}: expected text or messages.")
    found = [_message(message, f"{place}: '{key}'") for message in messages]
    if not any(message["content"].strip() for message in found):
        raise InputError(f"{place}: '{key}' is empty: expected text.")
    return found


def _message(message: Any, place: str) -> Message:
    """Returns a message with its content as text; place: of errors, with the key."""
    found = f"{place} holds {message!r:.60}"
    if not isinstance(message, dict) or "content" not in message:
        raise InputError(f"{found}: expected role and content.")
    if message.get("role") not in ROLES:
        raise InputError(
            f"{place} has the role {message.get('role')!r}: expected one of {', '.join(ROLES)}."
        )
    if message.get("tool_calls") or message.get("function_call"):
        raise InputError(
            f"{found}, which calls a tool: expected text, as no chat template here writes calls. "
            "Leave such rows out."
        )
    try:
        return {"role": message["role"], "content": text_of(message["content"])}
    except ValueError as error:
        raise InputError(f"{found}: {error}.") from None


def _is_parts(value: Any) -> bool:
    """Whether it is a message's content in parts, where messages could stand too."""
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(part, dict) and "type" in part and "role" not in part for part in value)
    )


def _quote(keys: tuple[str, ...]) -> str:
    return " and ".join(f"'{key}'" for key in keys)
