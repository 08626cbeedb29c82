"""Reads conversations and pairs from any source and format into two forms of rows.

A conversation is one of

    {"prompt": [messages], "completion": [messages]}  the answer to a conversation
    {"messages": [messages]}                          every assistant turn is an answer

and a pair is {"prompt": [messages], "chosen": [message], "rejected": [message]}, where a message
is {"role": "system" | "user" | "assistant", "content": "..."}. The content may be a list of text
parts, as OpenAI's clients write them. A text in place of a list of messages is a user's prompt or
an assistant's answer. Other keys are ignored. All rows of a source must have the same format.
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
from finetune.formats import ANSWERS, AUTO, PAIRS, Format, choose_format, has_columns
from finetune.sources import PlacedRow, read_objects

Message = dict[str, str]
Row = dict[str, list[Message]]
Sources = str | Path | list[str]

ROLES = ("system", "user", "assistant")


def read_rows(
    data: Sources, format: str = AUTO, split: str | None = None, language: str = "en"
) -> list[Row]:
    """Returns all conversations of the sources, in their order.

    Raises:
        InputError: a source is missing, empty or unreadable, or a row is not a conversation.
    """
    splits = [split] if split else ["train_sft", "train"]
    return _read(data, ANSWERS, format, splits, language, _conversation)


def read_pairs(
    data: Sources, format: str = AUTO, split: str | None = None, language: str = "en"
) -> list[Row]:
    """Returns all pairs of the sources, in their order.

    `chosen` and `rejected` may repeat the conversation before the answer, as UltraFeedback
    Binarized does. That conversation then replaces `prompt`, unless `prompt` already ends with it.

    Raises:
        InputError: a source is missing, empty or unreadable, or a row is not a pair.
    """
    splits = [split] if split else ["train_prefs", "train"]
    return _read(data, PAIRS, format, splits, language, _pair)


def fingerprint(rows: list[Row]) -> str:
    """Returns the sha256 of the rows."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps(row, sort_keys=True).encode() + b"\n")
    return digest.hexdigest()


def source_names(data: Sources) -> list[str]:
    """Returns the sources as a list."""
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
    for source in source_names(data):
        kept, skipped, reason = 0, 0, ""
        for place, row, format in _converted(source, formats, name, splits, language):
            try:
                rows.append(check(row, place))
                kept += 1
            except InputError as error:
                if not format.public:
                    raise
                reason = reason or str(error)
                skipped += 1
        if not kept:
            if reason:
                raise InputError(f"data={source}: no row is usable. The first error: {reason}")
            raise InputError(f"data={source}: no examples were found. Give one example per line.")
        if skipped and os.environ.get("RANK", "0") == "0":
            print(
                f"{source}: skipped {skipped} of {kept + skipped} rows. The first error: {reason}"
            )
    return rows


def _converted(
    source: str, formats: dict[str, Format], name: str, splits: list[str], language: str
) -> Iterator[tuple[str, dict[str, Any], Format]]:
    found = read_objects(source, splits)
    first = next(found, None)
    if first is None:
        return
    format = choose_format(formats, name, first[1], first[0])

    def checked() -> Iterator[PlacedRow]:
        for place, row in chain([first], found):
            if not has_columns(format, row):
                raise InputError(
                    f"{place}: expected the keys {_quote(format.columns)}, found "
                    f"{_quote(tuple(row)) or 'none'}. All rows of a source must have the same "
                    "format."
                )
            yield place, row

    if format.convert_tree:
        for place, row in format.convert_tree(checked(), language):
            yield place, row, format
    else:
        for place, row in checked():
            known = {column: row[column] for column in format.columns}
            yield place, format.convert(known), format


def _conversation(content: dict[str, Any], place: str) -> Row:
    """Returns the conversation of a row after checking it, with plain texts as messages."""
    keys = ("prompt", "completion") if "completion" in content else ("messages",)
    row = {key: _messages(content, key, place) for key in keys}
    last = list(row)[-1]
    if not any(message["role"] == "assistant" for message in row[last]):
        raise InputError(
            f"{place}: '{last}' has no assistant message to train on. Add one, or remove the row."
        )
    for message in row[last]:
        if message["role"] == "assistant" and not message["content"].strip():
            raise InputError(
                f"{place}: '{last}' has an empty assistant message. Add text, or remove the row."
            )
    return row


def _pair(content: dict[str, Any], place: str) -> Row:
    """Returns the pair of a row after checking it."""
    row = {key: _messages(content, key, place) for key in ("prompt", "chosen", "rejected")}
    if row["chosen"][:-1] != row["rejected"][:-1]:
        raise InputError(
            f"{place}: 'chosen' and 'rejected' answer different conversations. Give both the same "
            "messages before the answer."
        )
    answers = {key: row[key][-1:] for key in ("chosen", "rejected")}
    for key, (answer,) in answers.items():
        if answer["role"] != "assistant":
            raise InputError(
                f"{place}: '{key}' ends with a {answer['role']} message. End it with an assistant "
                "message."
            )
        if not answer["content"].strip():
            raise InputError(f"{place}: '{key}' has an empty answer. Add text, or remove the row.")
    if answers["chosen"] == answers["rejected"]:
        raise InputError(
            f"{place}: 'chosen' and 'rejected' are the same answer. Change one, or remove the row."
        )
    repeated = row["chosen"][:-1]
    longer = row["prompt"][-len(repeated) :] == repeated  # has a system message or earlier turns
    return {"prompt": row["prompt"] if longer or not repeated else repeated, **answers}


def _messages(content: dict[str, Any], key: str, place: str) -> list[Message]:
    messages = content.get(key)
    if isinstance(messages, str) or _is_parts(messages):
        messages = [{"role": "user" if key == "prompt" else "assistant", "content": messages}]
    if not isinstance(messages, list) or not messages:
        raise InputError(f"{place}: '{key}' is {messages!r:.40}. Give text or a list of messages.")
    found = [_message(message, f"{place}: '{key}'") for message in messages]
    if not any(message["content"].strip() for message in found):
        raise InputError(f"{place}: '{key}' has no text. Add text, or remove the row.")
    return found


def _message(message: Any, place: str) -> Message:
    """Returns a message with its content as text; `place` names the row and key for errors."""
    found = f"{place} has the message {message!r:.60}"
    if not isinstance(message, dict) or "content" not in message:
        raise InputError(
            f"{found}, which is not an object with content. Give each message a role and content."
        )
    if message.get("role") not in ROLES:
        raise InputError(
            f"{place} has a message with the role {message.get('role')!r}. Use one of "
            f"{', '.join(ROLES)}."
        )
    if message.get("tool_calls") or message.get("function_call"):
        raise InputError(
            f"{found}, which calls a tool. Remove such rows, because the chat templates cannot "
            "write tool calls."
        )
    try:
        return {"role": message["role"], "content": text_of(message["content"])}
    except ValueError as error:
        raise InputError(f"{found}, whose content is invalid: {error}.") from None


def _is_parts(value: Any) -> bool:
    """Returns whether a value is the content of a message in parts, and not a list of messages."""
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(part, dict) and "type" in part and "role" not in part for part in value)
    )


def _quote(keys: tuple[str, ...]) -> str:
    return " and ".join(f"'{key}'" for key in keys)
