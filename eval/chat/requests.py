"""What a client may ask the endpoint for: requests in OpenAI's form, checked before a model sees
them.

`transformers serve` answers many odd requests with an internal error, or with an empty text.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from conf.chat import text_of

Body = dict[str, Any]
Count = Callable[[str, Body], int]
"""Tokens of what a request on a path asks about, as the model gets it; raises BadRequest."""

TOO_LONG = "context_length_exceeded"
CHAT, TEXT, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/responses"
ROLES = ("system", "user", "assistant", "tool", "function")
ROOM_KEYS = {
    CHAT: ("max_completion_tokens", "max_tokens"),
    TEXT: ("max_tokens",),
    RESPONSES: ("max_output_tokens",),
}
"""Keys for the longest answer in tokens; the first that is given counts."""
USUAL_ROOM = 1024
"""Tokens that `transformers serve` lets an answer have where the request does not say."""
BETWEEN = {
    "temperature": (0.0, float("inf")),
    "top_p": (0.0, 1.0),
    "frequency_penalty": (-0.99, 2.0),  # the server divides by 1 + it
    "presence_penalty": (-2.0, 2.0),
}
"""Least and greatest value of the keys that are numbers."""


class BadRequest(Exception):
    """A request that cannot be answered: a sentence, the key that it is about, and OpenAI's code
    for what clients may react to."""

    def __init__(self, sentence: str, key: str | None = None, code: str | None = None) -> None:
        super().__init__(sentence)
        self.key, self.code = key, code

    def body(self) -> Body:
        """Returns the answer in OpenAI's form."""
        return error_body(str(self), "invalid_request_error", self.key, self.code)


def error_body(message: str, kind: str, key: str | None = None, code: str | None = None) -> Body:
    """Returns an error as OpenAI's endpoint writes it."""
    return {"error": {"message": message, "type": kind, "param": key, "code": code}}


def parsed(raw: bytes) -> Body:
    """Returns the JSON object of a request; raises BadRequest where it holds something else."""
    try:
        body = json.loads(raw.decode(), parse_constant=_refuse_constant)
        json.dumps(body, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        lone = ascii(error.object[error.start])[1:-1]
        raise BadRequest(f"the request holds {lone}, half of a character.") from None
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"the request is not JSON: {error}.") from None
    if not isinstance(body, dict):
        raise BadRequest(f"the request is {json.dumps(body):.40}: expected a JSON object.")
    return body


def checked(path: str, body: Body, count: Count, longest: int) -> Body:
    """Returns a request as the server is to get it: the role developer is the system's, text in
    parts is joined, and an answer ends where the model's context does.

    Raises:
        BadRequest: the request cannot be answered.
    """
    body = {key: value for key, value in body.items() if value is not None}
    _check_settings(path, body)
    if path == CHAT:
        body["messages"] = messages_of(body.get("messages"), "messages")
    elif path == TEXT:
        if not isinstance(body.get("prompt"), str) or not body["prompt"]:
            raise BadRequest("prompt: expected text that is not empty.", "prompt")
    elif not isinstance(body.get("input"), str) or not body["input"]:
        body["input"] = messages_of(body.get("input"), "input")
    asked = count(path, body)
    key = "prompt" if path == TEXT else "input" if path == RESPONSES else "messages"
    if not 0 < asked < longest:
        raise BadRequest(
            f"{key}: {asked} tokens, but the model sees {longest}, the answer included.",
            key,
            TOO_LONG,
        )
    given = next((name for name in ROOM_KEYS[path] if name in body), ROOM_KEYS[path][-1])
    if body.get(given, USUAL_ROOM) > longest - asked:
        body[given] = longest - asked
    return body


def messages_of(given: object, key: str) -> list[Body]:
    """Returns the messages of a conversation with their content as text.

    Raises:
        BadRequest: there is none, or one has an unknown role or content that is not text.
    """
    if not isinstance(given, list) or not given:
        raise BadRequest(f"{key}: expected a list of messages that is not empty.", key)
    return [_message(message, f"{key}[{number}]") for number, message in enumerate(given)]


def _message(given: Any, key: str) -> Body:
    if not isinstance(given, dict):
        raise BadRequest(f"{key}: expected a message with a role and content.", key)
    role = "system" if given.get("role") == "developer" else given.get("role")
    if role not in ROLES:
        raise BadRequest(
            f"{key}.role: {role!r:.40} is not a role; expected developer or one of "
            f"{', '.join(ROLES)}.",
            f"{key}.role",
        )
    message = {**given, "role": role}
    if calls := message.pop("tool_calls", None):
        message["tool_calls"] = _tool_calls(calls, f"{key}.tool_calls")
    elif "content" not in message:
        raise BadRequest(f"{key}.content is missing: expected text.", f"{key}.content")
    try:
        message["content"] = text_of(message.get("content") or "")
    except ValueError as error:
        raise BadRequest(f"{key}.content: {error}.", f"{key}.content") from None
    return message


def _tool_calls(calls: Any, key: str) -> list[Body]:
    """Returns an assistant's calls; raises BadRequest where one has no name or no arguments."""
    for call in calls if isinstance(calls, list) else [None]:
        function = call.get("function") if isinstance(call, dict) else None
        arguments = function.get("arguments") if isinstance(function, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise BadRequest(f"{key}: expected a list of calls of functions with a name.", key)
        if not isinstance(arguments, dict) and not _is_json_object(arguments):
            raise BadRequest(f"{key}: expected arguments that are a JSON object.", key)
    return list(calls)


def check_rendered(messages: list[Body], rendered: str) -> None:
    """Raises BadRequest where a chat template left out what a message says."""
    for number, message in enumerate(messages):
        if message["role"] != "assistant" and message["content"].strip() not in rendered:
            raise BadRequest(
                f"messages[{number}]: the model's chat template has no {message['role']} turn and "
                "would leave it out. Put its text into the user's message.",
                f"messages[{number}].role",
            )


def _check_settings(path: str, body: Body) -> None:
    for key in (*ROOM_KEYS[path], "n", "best_of"):
        if key in body and not (_is_whole(body[key]) and body[key] >= 1):
            raise BadRequest(f"{key}: {body[key]!r:.40}, expected a whole number from 1 on.", key)
    for key in ("n", "best_of"):
        if body.get(key, 1) != 1:
            raise BadRequest(f"{key}: {body[key]}, but this endpoint writes one answer.", key)
    for key, (least, most) in BETWEEN.items():
        value = body.get(key, least)
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise BadRequest(f"{key}: {value!r:.40}, expected a number.", key)
        if not least <= value <= most:
            raise BadRequest(f"{key}: {value}, expected {least:g} to {most:g}.", key)
    if "seed" in body and not (_is_whole(body["seed"]) and 0 <= body["seed"] < 2**63):
        raise BadRequest(f"seed: {body['seed']!r:.40}, expected a whole number from 0 on.", "seed")
    for key, kind in (("model", str), ("stream", bool), ("logit_bias", dict), ("suffix", str)):
        if key in body and not isinstance(body[key], kind):
            raise BadRequest(f"{key}: {body[key]!r:.40}, expected a {NAMES[kind]}.", key)
    for number, value in body.get("logit_bias", {}).items():
        if not number.isdecimal() or not isinstance(value, int | float):
            raise BadRequest(
                f"logit_bias: {number!r:.40} -> {value!r:.40}, expected token ids and numbers.",
                "logit_bias",
            )
    if "generation_config" in body and not _is_json_object(body["generation_config"]):
        raise BadRequest(
            "generation_config: expected the text of a JSON object.", "generation_config"
        )
    _check_stop(body)


NAMES = {str: "text", bool: "true or false", dict: "JSON object"}


def _check_stop(body: Body) -> None:
    """Takes an empty list out, which says nothing."""
    stop = body.get("stop")
    listed = stop if isinstance(stop, list) else [stop]
    if stop == []:
        del body["stop"]
    elif stop is not None and not all(isinstance(text, str) and text for text in listed):
        raise BadRequest("stop: expected text that is not empty, or a list of it.", "stop")


def _is_json_object(text: object) -> bool:
    try:
        return isinstance(text, str) and isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")
