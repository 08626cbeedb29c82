"""`python -m eval.chat.endpoint serve FOLDER ...`: `transformers serve` with checks of requests.

Every error is answered in OpenAI's form. Special tokens that a message spells are text, as in
tuning.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from eval.chat.requests import (
    CHAT,
    ROOM_KEYS,
    TEXT,
    BadRequest,
    Body,
    check_rendered,
    checked,
    error_body,
    messages_of,
    parsed,
)
from model.chat_tokens import ChatTokens

Event = dict[str, Any]
Receive = Callable[[], Awaitable[Event]]
Send = Callable[[Event], Awaitable[None]]


class Prompt:
    """How many tokens the model gets of a request."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.chat_tokens = ChatTokens(tokenizer)

    def count(self, path: str, body: Body) -> int:
        """Returns the tokens of a prompt, or of a conversation as the template renders it.

        Raises:
            BadRequest: there is no chat template, or it refuses the conversation.
        """
        from jinja2.exceptions import TemplateError

        if path == TEXT:
            return len(self.tokenizer(body["prompt"])["input_ids"])
        if not self.tokenizer.chat_template:
            raise BadRequest(f"the model has no chat template: use {TEXT}, or tune it first.")
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
            sentence = f"{key}: the model's chat template refuses them ({error})."
            raise BadRequest(sentence, key) from None
        check_rendered(messages, self.chat_tokens.plain(rendered))
        return len(self.chat_tokens.encode(rendered))


def _messages(body: Body) -> list[Body]:
    """Returns the conversation of a request for a response."""
    given = body["input"]
    messages = [{"role": "user", "content": given}] if isinstance(given, str) else given
    if "instructions" in body:
        first = {"role": "system", "content": body["instructions"]}
        return messages_of([first], "instructions") + messages
    return list(messages)


class Checks:
    """An ASGI application in front of the server's own.

    longest: tokens that the model sees.
    """

    def __init__(self, app: Any, prompt: Prompt, longest: int) -> None:
        self.app, self.prompt, self.longest = app, prompt, longest

    async def __call__(self, scope: Event, receive: Receive, send: Send) -> None:
        """Answers a request that cannot be answered by the model, and passes on the others."""
        if scope["type"] != "http" or scope["method"] != "POST" or scope["path"] not in ROOM_KEYS:
            await self.app(scope, receive, send)
            return
        raw, more = b"", True
        while more:
            event = await receive()
            if event["type"] == "http.disconnect":
                return
            raw, more = raw + event.get("body", b""), event.get("more_body", False)
        try:
            body = checked(scope["path"], parsed(raw), self.prompt.count, self.longest)
        except BadRequest as error:
            await _answer(send, 400, error.body())
            return
        await self._ask(scope, json.dumps(body).encode(), receive, send)

    async def _ask(self, scope: Event, raw: bytes, receive: Receive, send: Send) -> None:
        """Lets the server answer; what it refuses or fails at is told in OpenAI's form."""
        waiting = [{"type": "http.request", "body": raw, "more_body": False}]
        kept = [pair for pair in scope["headers"] if pair[0].lower() != b"content-length"]
        headers = [*kept, (b"content-length", str(len(raw)).encode())]
        status, refusal = 0, b""

        async def next_event() -> Event:
            return waiting.pop() if waiting else await receive()

        async def pass_on(event: Event) -> None:
            nonlocal status, refusal
            if event["type"] == "http.response.start":
                status = event["status"]
            if status < 400:
                await send(event)
                return
            refusal += event.get("body", b"")
            if event["type"] == "http.response.body" and not event.get("more_body", False):
                await _answer(send, 400 if status == 422 else status, _refusal(refusal, status))

        try:
            await self.app({**scope, "headers": headers}, next_event, pass_on)
        except Exception as error:
            if status:
                raise
            logging.getLogger(__name__).exception("a request failed")
            name = type(error).__name__
            await _answer(send, 500, error_body(f"the server failed: {name}.", "server_error"))


def _refusal(raw: bytes, status: int) -> Body:
    """Returns the server's own refusal in OpenAI's form."""
    try:
        told = json.loads(raw)
    except ValueError:
        told = raw.decode(errors="replace")
    sentence = told.get("detail", told.get("error", told)) if isinstance(told, dict) else told
    kind = "invalid_request_error" if status < 500 else "server_error"
    return error_body(sentence if isinstance(sentence, str) else json.dumps(sentence), kind)


async def _answer(send: Send, status: int, body: Body) -> None:
    raw = json.dumps(body).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(raw)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": raw})


def spell_as_text(tokenizer: Any) -> Any:
    """Returns the tokenizer, whose conversations are encoded by ChatTokens from now on."""
    from transformers import BatchEncoding

    tokens, render = ChatTokens(tokenizer), tokenizer.apply_chat_template

    def apply(
        conversation: list[Body], *, return_tensors: str | None = None, **settings: Any
    ) -> BatchEncoding:
        wanted = {**settings, "tokenize": False, "return_dict": False}
        ids = tokens.encode(render(tokens.shield(conversation), **wanted))
        rows = ids if return_tensors is None else [ids]
        ones = [1] * len(ids) if return_tensors is None else [[1] * len(ids)]
        return BatchEncoding(
            {"input_ids": rows, "attention_mask": ones}, tensor_type=return_tensors
        )

    tokenizer.apply_chat_template = apply
    return tokenizer


def main() -> None:
    """Runs `transformers serve` on the folder that the command line names."""
    from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerBase
    from transformers.cli import transformers as command
    from transformers.cli.serving import server
    from transformers.cli.serving.model_manager import ModelManager

    folder = Path(sys.argv[2])
    config = AutoConfig.from_pretrained(folder, local_files_only=True).get_text_config()
    longest = getattr(config, "max_position_embeddings", None) or sys.maxsize
    prompt = Prompt(AutoTokenizer.from_pretrained(folder, local_files_only=True))
    build = server.build_server

    def build_with_checks(*parts: Any, **settings: Any) -> Any:
        app = build(*parts, **settings)
        app.add_middleware(Checks, prompt=prompt, longest=longest)
        return app

    load = ModelManager._load_processor

    def load_as_text(*parts: Any, **settings: Any) -> Any:
        made = load(*parts, **settings)
        return spell_as_text(made) if isinstance(made, PreTrainedTokenizerBase) else made

    server.build_server = build_with_checks  # this process serves and does nothing after it
    ModelManager._load_processor = load_as_text  # type: ignore[method-assign]
    command.main()


if __name__ == "__main__":
    main()
