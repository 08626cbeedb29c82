"""Conversations from a jsonl file.

A line is one of

    {"prompt": "...", "completion": "..."}            one user turn and its answer
    {"prompt": [messages], "completion": [messages]}  the answer to a longer conversation
    {"messages": [messages]}                          every assistant turn is an answer

where a message is {"role": "system" | "user" | "assistant", "content": "..."}. Only answers are
learned from. Other keys are ignored; one file holds lines of one kind, the first line's.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from conf.errors import InputError

Message = dict[str, str]
Row = dict[str, list[Message]]

ROLES = ("system", "user", "assistant")
PAIR, CONVERSATION = ("prompt", "completion"), ("messages",)
TRIPLE = ("prompt", "chosen", "rejected")


def read_rows(path: Path) -> list[Row]:
    """All conversations of a file, as {prompt, completion} or {messages} of lists of messages.

    Raises:
        InputError: the file is missing, empty or not UTF-8, or a line is none of the above.
    """
    if not path.is_file():
        raise InputError(f"data={path} is no file: expected jsonl with conversations.")
    rows = []
    kind: tuple[str, ...] | None = None
    for place, content in _lines(path):
        found = _kind(content, place)
        kind = kind or found
        if found != kind:
            raise InputError(
                f"{place} has {_quote(found)} where the first line has {_quote(kind)}: "
                "expected one kind of line in a file."
            )
        row = _messages(content, place) if kind == CONVERSATION else _pair(content, place)
        if not any(message["role"] == "assistant" for message in row[kind[-1]]):
            raise InputError(
                f"{place}: '{kind[-1]}' has no assistant message: there is nothing to learn."
            )
        rows.append(row)
    if not rows:
        raise InputError(f"data={path} is empty: expected a conversation on each line.")
    return rows


def read_pairs(path: Path) -> list[Row]:
    """All pairs of a file, as {prompt, chosen, rejected} of lists of messages; the last two hold
    one assistant message each. `chosen` and `rejected` may repeat the conversation before it,
    as UltraFeedback Binarized does; that is then the prompt, whatever 'prompt' says.

    Raises:
        InputError: the file is missing, empty or not UTF-8, or a line is no such pair.
    """
    if not path.is_file():
        raise InputError(f"data={path} is no file: expected jsonl with pairs.")
    rows = []
    for place, content in _lines(path):
        row = {}
        for key, role in zip(TRIPLE, ("user", "assistant", "assistant"), strict=True):
            value = content.get(key)
            if isinstance(value, str):
                value = [{"role": role, "content": value}]
            row[key] = _checked(value, key, place)
        before = [row[key][:-1] for key in TRIPLE[1:]]
        if before[0] != before[1]:
            raise InputError(f"{place}: 'chosen' and 'rejected' answer different conversations.")
        answers = {key: row[key][-1:] for key in TRIPLE[1:]}
        for key, (answer,) in answers.items():
            if answer["role"] != "assistant":
                raise InputError(f"{place}: '{key}' ends with the {answer['role']}'s turn.")
        if answers["chosen"] == answers["rejected"]:
            raise InputError(f"{place}: 'chosen' and 'rejected' are the same answer.")
        rows.append({"prompt": before[0] or row["prompt"], **answers})
    if not rows:
        raise InputError(f"data={path} is empty: expected a pair on each line.")
    return rows


def _lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The lines that are not blank, each with its place for error messages."""
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"data={path} is not UTF-8 at byte {error.start}.") from None
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        place = f"{path}, line {number}"
        try:
            content = json.loads(line)
        except ValueError as error:
            raise InputError(f"{place} is not JSON: {error}.") from None
        if not isinstance(content, dict):
            raise InputError(f"{place} is no JSON object: expected {_quote(PAIR)} or 'messages'.")
        yield place, content


def _kind(content: dict[str, Any], place: str) -> tuple[str, ...]:
    kinds = [kind for kind in (PAIR, CONVERSATION) if all(key in content for key in kind)]
    if len(kinds) != 1:
        raise InputError(
            f"{place} has the keys {_quote(tuple(content)) or 'none'}: "
            f"expected either {_quote(PAIR)} or 'messages'."
        )
    return kinds[0]


def _messages(content: dict[str, Any], place: str) -> Row:
    return {"messages": _checked(content["messages"], "messages", place)}


def _pair(content: dict[str, Any], place: str) -> Row:
    """A pair of strings becomes a user's and an assistant's message."""
    row = {}
    for key, role in zip(PAIR, ("user", "assistant"), strict=True):
        value = content[key]
        if isinstance(value, str):
            value = [{"role": role, "content": value}]
        row[key] = _checked(value, key, place)
    return row


def _checked(messages: Any, key: str, place: str) -> list[Message]:
    if not isinstance(messages, list) or not messages:
        raise InputError(f"{place}: '{key}' is {messages!r:.40}: expected text or messages.")
    for message in messages:
        if not isinstance(message, dict) or not isinstance(message.get("content"), str):
            raise InputError(f"{place}: '{key}' holds {message!r:.60}: expected role and content.")
        if message.get("role") not in ROLES:
            raise InputError(
                f"{place}: '{key}' has the role {message.get('role')!r}: "
                f"expected one of {', '.join(ROLES)}."
            )
    if not any(message["content"].strip() for message in messages):
        raise InputError(f"{place}: '{key}' is empty: expected text.")
    return [{"role": message["role"], "content": message["content"]} for message in messages]


def _quote(keys: tuple[str, ...]) -> str:
    return " and ".join(f"'{key}'" for key in keys)
