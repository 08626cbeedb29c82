"""`python -m eval.chat.endpoint serve FOLDER ...`: `transformers serve` with request validation.

All errors are reported in OpenAI's format. Special tokens spelled out in a message are encoded as
plain text, as in tuning.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import secrets
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from eval.chat.engines import KEY_VARIABLE
from eval.chat.requests import (
    CHAT,
    MAX_TOKENS_KEYS,
    TEXT,
    BadRequest,
    Body,
    check_rendered,
    check_request,
    check_settings,
    error_body,
    parse_body,
    read_messages,
)
from eval.chat.scored_completions import ScoredCompletions, is_scored
from model.chat_tokens import ChatTokens

WRONG_KEY = "invalid_api_key"
Event = dict[str, Any]
Receive = Callable[[], Awaitable[Event]]
Send = Callable[[Event], Awaitable[None]]


class PromptCounter:
    """Counts the prompt tokens of requests."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.chat_tokens = ChatTokens(tokenizer)

    def count(self, path: str, body: Body) -> int:
        """Returns the number of tokens in a prompt or in a rendered conversation.

        Raises:
            BadRequest: there is no chat template, or it rejects the conversation.
        """
        from jinja2.exceptions import TemplateError

        if path == TEXT:
            return len(self.tokenizer(body["prompt"])["input_ids"])
        if not self.tokenizer.chat_template:
            raise BadRequest(
                f"the model has no chat template. Use {TEXT}, or tune the model first."
            )
        messages = body["messages"] if path == CHAT else _messages(body)
        settings = body.get("chat_template_kwargs", {})
        try:
            rendered = self.tokenizer.apply_chat_template(
                self.chat_tokens.shield(messages),
                tools=body.get("tools") if path == CHAT else None,
                tokenize=False,
                add_generation_prompt=True,
                **settings,
            )
        except (TemplateError, TypeError, ValueError, LookupError, AttributeError) as error:
            key = "messages" if path == CHAT else "input"
            message = f"{key}: the model's chat template rejects the conversation ({error})."
            raise BadRequest(message, key) from None
        check_rendered(messages, self.chat_tokens.plain(rendered))
        return len(self.chat_tokens.encode(rendered))


def _messages(body: Body) -> list[Body]:
    """Returns the conversation in a request to `/v1/responses`."""
    content = body["input"]
    messages = [{"role": "user", "content": content}] if isinstance(content, str) else content
    if "instructions" in body:
        first = {"role": "system", "content": body["instructions"]}
        return read_messages([first], "instructions") + messages
    return list(messages)


class KeyCheck:
    """ASGI middleware that answers only requests with the key, except for the state of the server.

    key: the key, which a client sends as `Authorization: Bearer KEY`.
    """

    def __init__(self, app: Any, key: str) -> None:
        self.app, self.wanted = app, f"Bearer {key}".encode()

    async def __call__(self, scope: Event, receive: Receive, send: Send) -> None:
        """Answers a request without the key with status 401."""
        given = dict(scope.get("headers", ())).get(b"authorization", b"")
        is_open = scope["type"] != "http" or scope["path"] == "/health"
        if is_open or secrets.compare_digest(given, self.wanted):
            await self.app(scope, receive, send)
            return
        message = "the key is missing or wrong. Send Authorization: Bearer KEY."
        await _answer(send, 401, error_body(message, "invalid_request_error", None, WRONG_KEY))


class RequestValidator:
    """ASGI middleware that validates requests before the server handles them.

    longest: context length of the model in tokens.
    scored: answers the completions that the server cannot, None if there are none.
    """

    def __init__(
        self,
        app: Any,
        prompt: PromptCounter,
        longest: int,
        scored: ScoredCompletions | None = None,
    ) -> None:
        self.app, self.prompt, self.longest, self.scored = app, prompt, longest, scored

    async def __call__(self, scope: Event, receive: Receive, send: Send) -> None:
        """Rejects invalid requests and forwards all others."""
        is_post = scope["type"] == "http" and scope["method"] == "POST"
        if not is_post or scope["path"] not in MAX_TOKENS_KEYS:
            await self.app(scope, receive, send)
            return
        raw, more = b"", True
        while more:
            event = await receive()
            if event["type"] == "http.disconnect":
                return
            raw, more = raw + event.get("body", b""), event.get("more_body", False)
        try:
            body = parse_body(raw)
            if self.scored is not None and scope["path"] == TEXT and is_scored(body):
                check_settings(TEXT, body)
                await _answer(send, 200, await asyncio.to_thread(self.scored.answer, body))
                return
            body = check_request(scope["path"], body, self.prompt.count, self.longest)
        except BadRequest as error:
            await _answer(send, 400, error.body())
            return
        await self._forward(scope, json.dumps(body).encode(), receive, send)

    async def _forward(self, scope: Event, raw: bytes, receive: Receive, send: Send) -> None:
        """Forwards a request to the server, and converts the server's errors to OpenAI's format."""
        events = [{"type": "http.request", "body": raw, "more_body": False}]
        other_headers = [pair for pair in scope["headers"] if pair[0].lower() != b"content-length"]
        headers = [*other_headers, (b"content-length", str(len(raw)).encode())]
        status, failure = 0, b""

        async def next_event() -> Event:
            return events.pop() if events else await receive()

        async def send_or_collect(event: Event) -> None:
            nonlocal status, failure
            if event["type"] == "http.response.start":
                status = event["status"]
            if status < 400:
                await send(event)
                return
            failure += event.get("body", b"")
            if event["type"] == "http.response.body" and not event.get("more_body", False):
                error = _server_error(failure, status)
                await _answer(send, 400 if status == 422 else status, error)

        try:
            await self.app({**scope, "headers": headers}, next_event, send_or_collect)
        except Exception as error:
            if status:
                raise
            logging.getLogger(__name__).exception("request failed")
            name = type(error).__name__
            await _answer(send, 500, error_body(f"the server failed: {name}.", "server_error"))


def _server_error(raw: bytes, status: int) -> Body:
    """Converts a server error to OpenAI's format."""
    try:
        content = json.loads(raw)
    except ValueError:
        content = raw.decode(errors="replace")
    detail = content
    if isinstance(content, dict):
        detail = content.get("detail", content.get("error", content))
    kind = "invalid_request_error" if status < 500 else "server_error"
    return error_body(detail if isinstance(detail, str) else json.dumps(detail), kind)


async def _answer(send: Send, status: int, body: Body) -> None:
    raw = json.dumps(body).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(raw)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": raw})


def escape_special_tokens(tokenizer: Any) -> Any:
    """Makes the tokenizer encode conversations with ChatTokens, and returns it."""
    from transformers import BatchEncoding

    tokens, render = ChatTokens(tokenizer), tokenizer.apply_chat_template

    def apply(
        conversation: list[Body], *, return_tensors: str | None = None, **settings: Any
    ) -> BatchEncoding:
        options = {**settings, "tokenize": False, "return_dict": False}
        ids = tokens.encode(render(tokens.shield(conversation), **options))
        rows = ids if return_tensors is None else [ids]
        ones = [1] * len(ids) if return_tensors is None else [[1] * len(ids)]
        return BatchEncoding(
            {"input_ids": rows, "attention_mask": ones}, tensor_type=return_tensors
        )

    tokenizer.apply_chat_template = apply
    return tokenizer


def main() -> None:
    """Runs `transformers serve` on the folder given on the command line."""
    from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerBase
    from transformers.cli import transformers as command
    from transformers.cli.serving import server
    from transformers.cli.serving.model_manager import ModelManager

    folder = Path(sys.argv[2])
    config = AutoConfig.from_pretrained(folder, local_files_only=True).get_text_config()
    longest = getattr(config, "max_position_embeddings", None) or sys.maxsize
    prompt = PromptCounter(AutoTokenizer.from_pretrained(folder, local_files_only=True))
    build, key = server.build_server, os.environ.pop(KEY_VARIABLE, None)

    def build_with_validation(*parts: Any, **settings: Any) -> Any:
        app, manager = build(*parts, **settings), parts[0]
        name = manager.process_model_name(str(folder))
        scored = ScoredCompletions(lambda: manager.load_model_and_processor(name), longest)
        app.add_middleware(RequestValidator, prompt=prompt, longest=longest, scored=scored)
        if key is not None:  # added last, so that it is the first to see a request
            app.add_middleware(KeyCheck, key=key)
        return app

    load = ModelManager._load_processor

    def load_as_text(*parts: Any, **settings: Any) -> Any:
        processor = load(*parts, **settings)
        is_tokenizer = isinstance(processor, PreTrainedTokenizerBase)
        return escape_special_tokens(processor) if is_tokenizer else processor

    server.build_server = build_with_validation  # safe to patch: this process only serves
    ModelManager._load_processor = load_as_text  # type: ignore[method-assign]
    command.main()


if __name__ == "__main__":
    main()
