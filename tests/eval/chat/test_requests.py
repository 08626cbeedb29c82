"""Requests to the endpoint: valid ones are normalized, others get status 400 and a sentence."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from eval.chat.endpoint import PromptCounter, RequestValidator, escape_special_tokens
from eval.chat.requests import CHAT, RESPONSES, TEXT, BadRequest, check_request, parse_body
from eval.load_model import load_model

USER = {"role": "user", "content": "one"}
CALL = {"type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}


def words(path: str, body: dict) -> int:
    """A stand-in for the tokens of a prompt."""
    key = {CHAT: "messages", TEXT: "prompt", RESPONSES: "input"}[path]
    given = body[key]
    texts = [given] if isinstance(given, str) else [message["content"] for message in given]
    return sum(len(text.split()) for text in texts) + 1


def ask(body: Any, path: str = CHAT) -> dict:
    return check_request(path, parse_body(json.dumps(body).encode()), words, 100)


@pytest.mark.parametrize(
    ("changes", "sentence", "key"),
    [
        ({"messages": []}, "messages: expected a non-empty list of messages", "messages"),
        ({"messages": None}, "messages: expected a non-empty list", "messages"),
        ({"messages": "hi"}, "messages: expected a non-empty list", "messages"),
        ({"messages": ["hi"]}, r"messages\[0\]: expected a message with role", "messages[0]"),
        ({"messages": [{"content": "a"}]}, "role=None: expected one of", "messages[0].role"),
        ({"messages": [USER, {"role": "wizard", "content": "a"}]}, "'wizard'", "messages[1].role"),
        (
            {"messages": [{"role": 3, "content": "a"}]},
            "role=3: expected one of",
            "messages[0].role",
        ),
        ({"messages": [{"role": []}]}, r"role=\[\]: expected one of", "messages[0].role"),
        (
            {"messages": [{"role": "user"}]},
            "content: expected text, but the key is missing",
            "messages[0].content",
        ),
        ({"messages": [USER | {"content": 3}]}, "found 3", "messages[0].content"),
        (
            {"messages": [USER | {"content": [{"type": "image_url", "image_url": {}}]}]},
            "a part of type 'image_url'",
            "messages[0].content",
        ),
        (
            {"messages": [USER, {"role": "assistant", "tool_calls": ["add"]}]},
            "expected a list of function calls, each with a name",
            "messages[1].tool_calls",
        ),
        (
            {"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "add"}}]}]},
            "expected arguments that are a JSON object",
            "messages[0].tool_calls",
        ),
        (
            {"messages": [USER, {"role": "assistant", "tool_calls": []}]},
            "content: expected text, but the key is missing",
            "messages[1].content",
        ),
        ({"generation_config": "{"}, "expected the text of a JSON", "generation_config"),
        (
            {"messages": [USER | {"content": "\ud83d"}]},
            r"contains the unpaired surrogate \\ud83d",
            None,
        ),
        (
            {"messages": [USER | {"content": "a " * 99}]},
            "has 100 tokens, but the model",
            "messages",
        ),
        ({"max_tokens": 0}, "max_tokens=0: expected an integer of 1 or more", "max_tokens"),
        ({"max_tokens": -1}, "max_tokens=-1", "max_tokens"),
        ({"max_tokens": "9"}, "max_tokens='9'", "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens=1.5", "max_tokens"),
        ({"max_tokens": True}, "max_tokens=True", "max_tokens"),
        ({"max_completion_tokens": 0}, "max_completion_tokens=0", "max_completion_tokens"),
        ({"temperature": -0.1}, "temperature=-0.1: expected 0 or more", "temperature"),
        ({"temperature": "hot"}, "temperature='hot': expected a number", "temperature"),
        ({"temperature": False}, "temperature=False", "temperature"),
        ({"top_p": 1.1}, "top_p=1.1: expected 0 to 1", "top_p"),
        ({"top_p": -1}, "top_p=-1", "top_p"),
        ({"frequency_penalty": -1}, "frequency_penalty=-1", "frequency_penalty"),
        ({"presence_penalty": 3}, "presence_penalty=3", "presence_penalty"),
        ({"n": 2}, "n=2: expected 1, because a request gets one answer", "n"),
        ({"n": 0}, "n=0", "n"),
        ({"n": "1"}, "n='1'", "n"),
        ({"seed": "x"}, "seed='x'", "seed"),
        ({"seed": -1}, "seed=-1", "seed"),
        ({"stream": "yes"}, "stream='yes': expected true or false", "stream"),
        ({"model": 3}, "model=3: expected text", "model"),
        ({"stop": 3}, "stop: expected non-empty text", "stop"),
        ({"stop": ""}, "stop: expected non-empty text", "stop"),
        ({"stop": ["a", 3]}, "stop: expected non-empty text", "stop"),
        ({"stop": "\udc00"}, r"unpaired surrogate \\udc00", None),
        ({"logit_bias": {"a": 1}}, "logit_bias.a=1", "logit_bias"),
        ({"logit_bias": [1]}, "logit_bias", "logit_bias"),
    ],
)
def test_invalid_conversations_are_rejected(changes: dict, sentence: str, key: str) -> None:
    with pytest.raises(BadRequest, match=sentence) as caught:
        ask({"messages": [USER]} | changes)
    error = caught.value.body()["error"]
    assert (error["type"], error["param"]) == ("invalid_request_error", key)
    assert error["message"] == str(caught.value)


@pytest.mark.parametrize(
    ("path", "body", "sentence"),
    [
        (TEXT, {}, "prompt: expected non-empty text"),
        (TEXT, {"prompt": ""}, "prompt: expected non-empty text"),
        (TEXT, {"prompt": ["a", "b"]}, "prompt: expected non-empty text"),
        (TEXT, {"prompt": "\ud83d"}, "unpaired surrogate"),
        (TEXT, {"prompt": "a", "max_tokens": 0}, "max_tokens=0"),
        (TEXT, {"prompt": "a", "best_of": 4}, "best_of=4"),
        (
            TEXT,
            {"prompt": "a " * 99},
            "prompt: the prompt has 100 tokens, but the model's context length is 100",
        ),
        (RESPONSES, {}, "input: expected a non-empty list"),
        (RESPONSES, {"input": "a", "max_output_tokens": 0}, "max_output_tokens=0"),
        (RESPONSES, {"input": [{"role": "x", "content": "a"}]}, r"input\[0\]\.role='x'"),
        (CHAT, [], r"the request is \[\]: expected a JSON object"),
    ],
)
def test_other_invalid_requests_are_rejected(path: str, body: Any, sentence: str) -> None:
    with pytest.raises(BadRequest, match=sentence):
        ask(body, path)


@pytest.mark.parametrize("raw", [b"", b"{", b'{"a": NaN}', b"\xff", b'{"a": -Infinity}'])
def test_bodies_that_are_not_json_are_rejected(raw: bytes) -> None:
    with pytest.raises(BadRequest, match="is not JSON"):
        parse_body(raw)


def test_valid_requests_are_normalized() -> None:
    """`developer` becomes `system`, parts are joined, the answer is limited to the context."""
    parts = [{"type": "text", "text": "o"}, {"type": "input_text", "text": "ne"}]
    messages = [
        {"role": "developer", "content": "be kind"},
        USER | {"content": parts, "name": "me"},
        {"role": "assistant", "content": None},
        {"role": "assistant", "content": "a", "tool_calls": []},
        {"role": "assistant", "tool_calls": [CALL]},
        USER | {"content": ""},
    ]
    found = ask({"messages": messages, "stop": [], "n": 1, "max_tokens": None, "temperature": 0})
    assert found == {
        "messages": [
            {"role": "system", "content": "be kind"},
            USER | {"name": "me"},
            {"role": "assistant", "content": ""},
            {"role": "assistant", "content": "a"},
            {"role": "assistant", "tool_calls": [CALL], "content": ""},
            USER | {"content": ""},
        ],
        "n": 1,
        "temperature": 0,
        "max_tokens": 95,
    }
    assert ask({"messages": [USER], "max_completion_tokens": 5})["max_completion_tokens"] == 5
    assert ask({"messages": [USER], "max_completion_tokens": 500})["max_completion_tokens"] == 98
    assert ask({"prompt": "a b", "max_tokens": 97}, TEXT)["max_tokens"] == 97
    assert ask({"input": "a"}, RESPONSES) == {"input": "a", "max_output_tokens": 98}


@pytest.fixture(scope="module")
def loaded(chat_model):
    return load_model(str(chat_model), "float32")


def test_prompt_tokens_are_counted_after_rendering(loaded) -> None:
    prompt = PromptCounter(loaded.tokenizer)
    messages = [USER | {"content": "Strike </s> out"}]
    expected = loaded.chat_tokens.encode("<user>") + loaded.chat_tokens.encode_text(
        "Strike </s> out"
    )
    text = "<assistant>"
    count = len(expected) + 1 + len(loaded.chat_tokens.encode(text))
    assert prompt.count(CHAT, {"messages": messages}) == count
    assert prompt.count(RESPONSES, {"input": "Strike </s> out"}) == count
    body = {"input": messages, "instructions": "be kind"}
    assert prompt.count(RESPONSES, body) > count
    assert prompt.count(TEXT, {"prompt": "abc"}) == 3


def test_messages_that_the_template_drops_or_rejects(loaded, monkeypatch) -> None:
    template = (
        "{% for m in messages %}{% if m['role'] == 'tool' %}{{ raise_exception('no tools') }}"
        "{% elif m['role'] != 'system' %}{{ m['content'] | trim }}{% endif %}{% endfor %}"
    )
    prompt = PromptCounter(loaded.tokenizer)
    monkeypatch.setattr(loaded.tokenizer, "chat_template", template)
    assert prompt.count(CHAT, {"messages": [USER | {"content": " one \n"}]}) == 3
    with pytest.raises(
        BadRequest, match=r"messages\[0\]: the model's chat template ignores the role"
    ):
        prompt.count(CHAT, {"messages": [{"role": "system", "content": "be kind"}, USER]})
    with pytest.raises(BadRequest, match=r"chat template rejects the conversation \(no tools\)"):
        prompt.count(CHAT, {"messages": [{"role": "tool", "content": "3"}]})
    monkeypatch.setattr(loaded.tokenizer, "chat_template", None)
    with pytest.raises(BadRequest, match=r"has no chat template\. Use /v1/completions"):
        prompt.count(CHAT, {"messages": [USER]})


def answer(app: Any, body: bytes, path: str = CHAT, method: str = "POST") -> tuple[int, dict]:
    """Returns status and content of the response to a request sent in two pieces."""
    pieces = [
        {"type": "http.request", "body": body[:5], "more_body": True},
        {"type": "http.request", "body": body[5:], "more_body": False},
    ]
    sent: list[dict] = []

    async def receive() -> dict:
        return pieces.pop(0)

    async def send(event: dict) -> None:
        sent.append(event)

    scope = {"type": "http", "method": method, "path": path, "headers": []}
    asyncio.run(app(scope, receive, send))
    assert [event["type"] for event in sent] == ["http.response.start", "http.response.body"]
    return sent[0]["status"], json.loads(sent[1]["body"])


def test_the_server_receives_checked_requests_and_returns_openai_errors(loaded) -> None:
    reply: dict[str, Any] = {"status": 200, "body": b'{"detail": "no such field"}'}

    async def server(scope: dict, receive: Any, send: Any) -> None:
        event = await receive()
        assert dict(scope["headers"])[b"content-length"] == str(len(event["body"])).encode()
        reply["asked"] = json.loads(event["body"])
        if reply["status"] == 0:
            raise KeyError("broken")
        await send({"type": "http.response.start", "status": reply["status"], "headers": []})
        await send({"type": "http.response.body", "body": reply["body"]})

    app = RequestValidator(server, PromptCounter(loaded.tokenizer), 512)
    body = json.dumps({"messages": [USER], "temperature": 0}).encode()
    assert answer(app, body) == (200, {"detail": "no such field"})
    assert reply["asked"] == {"messages": [USER], "temperature": 0, "max_tokens": 491}
    for status, told, kind in (
        (422, 400, "invalid_request_error"),
        (400, 400, "invalid_request_error"),
        (503, 503, "server_error"),
    ):
        reply["status"] = status
        found, content = answer(app, body)
        assert found == told
        assert content["error"]["message"] == "no such field"
        assert content["error"]["type"] == kind
    reply["status"] = 0
    found, content = answer(app, body)
    assert (found, content["error"]["type"]) == (500, "server_error")
    del reply["asked"]
    for bad in (b"{nonsense", b'{"messages": []}', b'{"stream": true, "messages": []}'):
        found, content = answer(app, bad)
        assert (found, content["error"]["type"]) == (400, "invalid_request_error")
    assert "asked" not in reply


def test_other_paths_are_left_alone(loaded) -> None:
    async def server(scope: dict, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": (await receive())["body"]})

    assert answer(
        RequestValidator(server, PromptCounter(loaded.tokenizer), 1), b"'{}'"[1:3], "/load_model"
    ) == (
        200,
        {},
    )


@pytest.mark.parametrize("tensors", [None, "pt"])
def test_the_server_encodes_special_tokens_in_messages_as_text(chat_model, tensors) -> None:
    from transformers import AutoTokenizer

    tokenizer = escape_special_tokens(AutoTokenizer.from_pretrained(chat_model))
    spelled = [USER | {"content": "Strike </s> out"}]
    found = tokenizer.apply_chat_template(
        spelled, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors=tensors
    )
    ids = found["input_ids"] if tensors is None else found["input_ids"][0].tolist()
    assert tokenizer.decode(ids) == "<user>Strike </s> out</s><assistant>"
    assert ids.count(tokenizer.eos_token_id) == 1
    assert len(found["attention_mask"]) == len(found["input_ids"])
