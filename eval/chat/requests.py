"""Validates requests in OpenAI's format before they reach the server.

`transformers serve` answers many invalid requests with an internal error, or with empty text.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

from conf.chat import text_of

Body = dict[str, Any]
TokenCount = Callable[[str, Body], int]
"""Counts the prompt tokens of a request, given its path and body; may raise BadRequest."""

TOO_LONG = "context_length_exceeded"
CHAT, TEXT, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/responses"
ROLES = ("system", "user", "assistant", "tool", "function")
MAX_TOKENS_KEYS = {
    CHAT: ("max_completion_tokens", "max_tokens"),
    TEXT: ("max_tokens",),
    RESPONSES: ("max_output_tokens",),
}
"""Keys that limit the number of tokens in an answer, by path; the first one present applies."""
DEFAULT_MAX_TOKENS = 1024
"""Limit that `transformers serve` applies to requests that set none."""
RANGES = {
    "temperature": (0.0, float("inf")),
    "top_p": (0.0, 1.0),
    "frequency_penalty": (-0.99, 2.0),  # the server divides by 1 + penalty
    "presence_penalty": (-2.0, 2.0),
}
"""Minimum and maximum of numeric keys."""


class BadRequest(Exception):
    """Error for an invalid request, which is answered with status 400.

    key: the invalid key.
    code: OpenAI's error code, for errors that clients handle by code.
    """

    def __init__(self, sentence: str, key: str | None = None, code: str | None = None) -> None:
        super().__init__(sentence)
        self.key, self.code = key, code

    def body(self) -> Body:
        """Returns the error in OpenAI's format."""
        return error_body(str(self), "invalid_request_error", self.key, self.code)


def error_body(message: str, kind: str, key: str | None = None, code: str | None = None) -> Body:
    """Returns an error in OpenAI's format."""
    return {"error": {"message": message, "type": kind, "param": key, "code": code}}


def parse_body(raw: bytes) -> Body:
    """Returns the JSON object in a request; raises BadRequest if it is not one."""
    try:
        body = json.loads(raw.decode(), parse_constant=_refuse_constant)
        json.dumps(body, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        lone = ascii(error.object[error.start])[1:-1]
        raise BadRequest(
            f"the request contains the unpaired surrogate {lone}, which is not valid Unicode. "
            "Remove it."
        ) from None
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"the request is not JSON: {error}.") from None
    if not isinstance(body, dict):
        raise BadRequest(f"the request is {json.dumps(body):.40}: expected a JSON object.")
    return body


def check_request(path: str, body: Body, count: TokenCount, longest: int) -> Body:
    """Validates a request and returns it in the form that the server needs.

    The role `developer` becomes `system`, text parts are joined, and the answer is limited to the
    tokens that the prompt leaves of the context length, `longest`.

    Raises:
        BadRequest: the request is invalid.
    """
    body = {key: value for key, value in body.items() if value is not None}
    check_settings(path, body)
    if path == CHAT:
        body["messages"] = read_messages(body.get("messages"), "messages")
    elif path == TEXT:
        if not isinstance(body.get("prompt"), str) or not body["prompt"]:
            raise BadRequest("prompt: expected non-empty text.", "prompt")
    elif not isinstance(body.get("input"), str) or not body["input"]:
        body["input"] = read_messages(body.get("input"), "input")
    prompt_tokens = count(path, body)
    key = "prompt" if path == TEXT else "input" if path == RESPONSES else "messages"
    if not 0 < prompt_tokens < longest:
        raise BadRequest(
            f"{key}: the prompt has {prompt_tokens} tokens, but the model's context length is "
            f"{longest}, including the answer. Shorten the prompt.",
            key,
            TOO_LONG,
        )
    limit_keys = MAX_TOKENS_KEYS[path]
    limit_key = next((name for name in limit_keys if name in body), limit_keys[-1])
    if body.get(limit_key, DEFAULT_MAX_TOKENS) > longest - prompt_tokens:
        body[limit_key] = longest - prompt_tokens
    return body


def read_messages(messages: object, key: str) -> list[Body]:
    """Returns the messages of a conversation with their content as text.

    Raises:
        BadRequest: there are no messages, or one has an unknown role or content other than text.
    """
    if not isinstance(messages, list) or not messages:
        raise BadRequest(f"{key}: expected a non-empty list of messages.", key)
    return [_read_message(message, f"{key}[{number}]") for number, message in enumerate(messages)]


def _read_message(content: Any, key: str) -> Body:
    if not isinstance(content, dict):
        raise BadRequest(f"{key}: expected a message with role and content.", key)
    role = "system" if content.get("role") == "developer" else content.get("role")
    if role not in ROLES:
        raise BadRequest(
            f"{key}.role={role!r:.40}: expected one of developer, {', '.join(ROLES)}.",
            f"{key}.role",
        )
    message = {**content, "role": role}
    if calls := message.pop("tool_calls", None):
        message["tool_calls"] = _tool_calls(calls, f"{key}.tool_calls")
    elif "content" not in message:
        raise BadRequest(f"{key}.content: expected text, but the key is missing.", f"{key}.content")
    try:
        message["content"] = text_of(message.get("content") or "")
    except ValueError as error:
        raise BadRequest(f"{key}.content: {error}.", f"{key}.content") from None
    return message


def _tool_calls(calls: Any, key: str) -> list[Body]:
    """Returns the tool calls of a message; raises BadRequest if one has no name or arguments."""
    for call in calls if isinstance(calls, list) else [None]:
        function = call.get("function") if isinstance(call, dict) else None
        arguments = function.get("arguments") if isinstance(function, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise BadRequest(f"{key}: expected a list of function calls, each with a name.", key)
        if not isinstance(arguments, dict) and not _is_json_object(arguments):
            raise BadRequest(f"{key}: expected arguments that are a JSON object.", key)
    return list(calls)


def check_rendered(messages: list[Body], rendered: str) -> None:
    """Raises BadRequest if the chat template dropped the content of a message."""
    for number, message in enumerate(messages):
        if message["role"] != "assistant" and message["content"].strip() not in rendered:
            raise BadRequest(
                f"messages[{number}]: the model's chat template ignores the role "
                f"{message['role']}. Put the text into a user message.",
                f"messages[{number}].role",
            )


def check_settings(path: str, body: Body) -> None:
    """Raises BadRequest if a setting of the request has a wrong type or value."""
    for key in (*MAX_TOKENS_KEYS[path], "n", "best_of"):
        if key in body and not (_is_integer(body[key]) and body[key] >= 1):
            raise BadRequest(f"{key}={body[key]!r:.40}: expected an integer of 1 or more.", key)
    for key in ("n", "best_of"):
        if body.get(key, 1) != 1:
            raise BadRequest(
                f"{key}={body[key]}: expected 1, because a request gets one answer only.", key
            )
    for key, (least, most) in RANGES.items():
        value = body.get(key, least)
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise BadRequest(f"{key}={value!r:.40}: expected a number.", key)
        if not least <= value <= most:
            wanted = f"{least:g} or more" if math.isinf(most) else f"{least:g} to {most:g}"
            raise BadRequest(f"{key}={value}: expected {wanted}.", key)
    if "seed" in body and not (_is_integer(body["seed"]) and 0 <= body["seed"] < 2**63):
        raise BadRequest(
            f"seed={body['seed']!r:.40}: expected an integer from 0 to 2**63 - 1.", "seed"
        )
    for key, kind in (("model", str), ("stream", bool), ("logit_bias", dict), ("suffix", str)):
        if key in body and not isinstance(body[key], kind):
            raise BadRequest(f"{key}={body[key]!r:.40}: expected {NAMES[kind]}.", key)
    for number, value in body.get("logit_bias", {}).items():
        if not number.isdecimal() or not isinstance(value, int | float):
            raise BadRequest(
                f"logit_bias.{number!s:.40}={value!r:.40}: expected a token id as the key and a "
                "number as the value.",
                "logit_bias",
            )
    if "generation_config" in body and not _is_json_object(body["generation_config"]):
        raise BadRequest(
            "generation_config: expected the text of a JSON object.", "generation_config"
        )
    _check_stop(body)


NAMES = {str: "text", bool: "true or false", dict: "a JSON object"}


def _check_stop(body: Body) -> None:
    """Raises BadRequest if `stop` is invalid, and removes an empty list."""
    stop = body.get("stop")
    listed = stop if isinstance(stop, list) else [stop]
    if stop == []:
        del body["stop"]
    elif stop is not None and not all(isinstance(text, str) and text for text in listed):
        raise BadRequest("stop: expected non-empty text, or a list of such texts.", "stop")


def _is_json_object(text: object) -> bool:
    try:
        return isinstance(text, str) and isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")
