"""Chat with a model: in the terminal, over the endpoint, and on the page."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
import torch

from conf.errors import InputError
from conf.gradio_page import check_port, launch_page
from eval.chat.chat import (
    ChatConfig,
    check_system_turn,
    conversation_ids,
    stream_answer,
    system_turn,
    truncated_ids,
)
from eval.chat.endpoint import KeyCheck
from eval.chat.engines import endpoint_command
from eval.chat.serve import (
    ServeConfig,
    check_chat_template,
    make_responder,
    turn_text,
)
from eval.load_model import load_model
from tests import browser
from tests.conftest import ROOT
from tests.patience import limit
from tests.ports import free_port

QUIET = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def loaded(chat_model):
    return load_model(str(chat_model), "float32")


def user(text: Any) -> dict[str, Any]:
    return {"role": "user", "content": text}


def test_streamed_pieces_equal_the_generated_text(loaded):
    config = ChatConfig("", temperature=0, max_new_tokens=12, repetition_penalty=1.0)
    ids = conversation_ids(loaded, [user("one")])
    assert loaded.tokenizer.decode(ids[0]) == "<user>one</s><assistant>"
    pieces = list(stream_answer(loaded, [user("one")], config))
    whole = loaded.model.generate(ids, do_sample=False, max_new_tokens=12)[0, ids.shape[1] :]
    assert "".join(pieces) == loaded.tokenizer.decode(whole, skip_special_tokens=True)


def test_the_oldest_turns_are_dropped(loaded):
    turns = []
    for number in range(40):
        turns += [user(f"question {number}"), {"role": "assistant", "content": f"no {number}"}]
    turns += [user("last")]
    ids = truncated_ids(
        loaded, [{"role": "system", "content": "be kind"}, *turns], max_new_tokens=100
    )
    text = loaded.tokenizer.decode(ids[0])
    assert ids.shape[1] <= 512 - 100
    assert text.startswith("<system>be kind</s><user>question 3")
    assert text.endswith("<user>last</s><assistant>")


def test_a_truncated_question_keeps_its_role_markers_and_its_end(loaded):
    """This holds for any length of the question and of the answer."""
    question = "".join(f"word{number} " for number in range(200)) + "end"
    for room in (20, 500, 512, 4096):
        for asked in ("What is the capital?", question):
            ids = truncated_ids(loaded, [user(asked)], room)
            text = loaded.tokenizer.decode(ids[0])
            assert ids.shape[1] + min(room, 256) <= 512
            assert text.startswith("<user>")
            assert text.endswith(f"{asked[-18:]}</s><assistant>")


def test_a_template_without_a_system_role_is_named(make_model, tmp_path):
    folder = make_model(tmp_path / "strict", chat=True)
    template = "{% for m in messages %}{% if m['role'] == 'system' %}"
    template += "{{ raise_exception('no system') }}{% endif %}{{ m['content'] }}{% endfor %}"
    (folder / "chat_template.jinja").write_text(template)
    strict = load_model(str(folder))
    check_system_turn(strict, [])
    with pytest.raises(
        InputError, match=r"system: the model's chat template rejects a system prompt \(no sys"
    ):
        check_system_turn(strict, [{"role": "system", "content": "be kind"}])


def test_a_system_prompt_that_is_not_unicode_is_named():
    assert system_turn(None) == system_turn("") == []
    with pytest.raises(InputError, match=r"system='be k\\udce9': the unpaired surrogate \\udce9"):
        system_turn("be k\udce9")


def test_the_page_drops_the_oldest_turns_of_a_long_conversation(monkeypatch):
    """The chat in the terminal does the same."""
    openai = pytest.importorskip("openai", reason="openai is not installed (extra chat)")
    httpx = pytest.importorskip("httpx")
    asked = []

    def create(**settings):
        asked.append([message["content"] for message in settings["messages"]])
        if len(asked[-1]) > 2:
            code = "context_length_exceeded"
            request = httpx.Request("POST", "http://localhost")
            body = {"message": "too long", "code": code}
            raise openai.BadRequestError(
                "400", response=httpx.Response(400, request=request), body=body
            )
        delta = SimpleNamespace(content="yes")
        return [SimpleNamespace(choices=[SimpleNamespace(delta=delta)])]

    completions = SimpleNamespace(create=create)
    client = SimpleNamespace(chat=SimpleNamespace(completions=completions))
    monkeypatch.setattr(openai, "OpenAI", lambda **_: client)
    respond = make_responder("m", "http://localhost/v1")
    history = [user("1"), {"role": "assistant", "content": "2"}]
    history += [user("3"), {"role": "assistant", "content": "4"}]
    assert list(respond("5", history, "be kind", 0, 0, 8)) == ["yes"]
    assert asked == [["be kind", *"12345"], ["be kind", *"345"], ["be kind", "5"]]


@pytest.mark.slow
def test_questions_are_read_from_a_pipe(chat_model):
    done = subprocess.run(
        [sys.executable, "-m", "eval", "chat", f"model={chat_model}", "max_new_tokens=8"],
        input=b"one\n\n/new\ncaf\xe9\n",  # the last line is not UTF-8
        cwd=ROOT,
        env=os.environ | QUIET,
        capture_output=True,
        timeout=limit(120),
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) >= 2


def test_a_model_without_a_template_is_refused(command, model):
    done = command("eval", "chat", f"model={model}")
    assert done.returncode == 2
    assert "has no chat template. Tune it first" in done.stderr


def test_the_page_needs_a_template_in_one_of_two_places(chat_model, model, tmp_path):
    check_chat_template("m", chat_model)
    with pytest.raises(
        InputError, match="model=m: the model has no chat template, which the page needs"
    ):
        check_chat_template("m", model)
    (tmp_path / "tokenizer_config.json").write_text('{"chat_template": "{{ messages }}"}')
    check_chat_template("m", tmp_path)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ChatConfig("m", temperature=-1), "temperature=-1"),
        (lambda: ChatConfig("m", top_p=0), "top_p=0"),
        (lambda: ServeConfig("m", port=8000), "port=8000: api_port has the same value"),
        (lambda: ServeConfig("m", port=0), "port=0"),
        (
            lambda: ServeConfig("m", engine="vlm"),
            r"engine=vlm: unknown choice \(did you mean",
        ),
    ],
)
def test_settings_are_checked(make, message):
    with pytest.raises(InputError, match=message):
        make()


def test_commands_of_the_engines(tmp_path):
    vllm = ServeConfig("m", engine="vllm", host="::", api_port=9)
    assert endpoint_command(vllm, tmp_path, "bfloat16") == [
        *("vllm", "serve", str(tmp_path), "--dtype", "bfloat16", "--host", "::", "--port", "9")
    ]
    own = endpoint_command(ServeConfig("m", device="cpu"), tmp_path, "float32")
    assert own[5:7] == ["--dtype", "float32"]
    assert own[3:5] == ["serve", str(tmp_path)]
    assert own[-6:] == ["--device", "cpu", "--host", "127.0.0.1", "--port", "8000"]


def test_options_of_other_settings_are_refused():
    with pytest.raises(InputError, match=r"engine_args: --port is set by api_port="):
        ServeConfig("m", engine="vllm", engine_args=["--max-model-len=9", "--port=9"])
    with pytest.raises(InputError, match=r"api_key: expected text that is not empty"):
        ServeConfig("m", api_key="")


def test_requests_without_the_key_are_refused():
    """The state of the server is open, for load balancers."""
    from starlette.applications import Starlette
    from starlette.responses import PlainTextResponse
    from starlette.routing import Route
    from starlette.testclient import TestClient

    routes = [Route(path, lambda _: PlainTextResponse("ok")) for path in ("/health", "/v1/models")]
    app = Starlette(routes=routes)
    app.add_middleware(KeyCheck, key="secret")
    client = TestClient(app)
    assert client.get("/health").status_code == 200
    for given in ({}, {"Authorization": "Bearer secre"}, {"Authorization": "secret"}):
        refused = client.get("/v1/models", headers=given)
        assert (refused.status_code, refused.json()["error"]["code"]) == (401, "invalid_api_key")
    assert client.get("/v1/models", headers={"Authorization": "Bearer secret"}).text == "ok"


def test_the_page_asks_for_the_key(monkeypatch):
    asked: dict[str, Any] = {}
    page = SimpleNamespace(launch=lambda **settings: asked.update(settings), share_url=None)
    launch_page(page, "127.0.0.1", 7860, False, "", "secret")
    assert asked["auth"]("anyone", "secret")
    assert not asked["auth"]("anyone", "")
    launch_page(page, "127.0.0.1", 7860, False, "")
    assert asked["auth"] is None


def test_a_port_in_use_is_named():
    with socket.socket() as other:
        other.bind(("", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(InputError, match=f"api_port={port}: .*Address already in use"):
            check_port("api_port", port)


def test_parts_of_a_message():
    assert turn_text({"content": "whole"}) == "whole"
    parts = [{"type": "text", "text": "a"}, {"type": "file"}, {"type": "text", "text": "b"}]
    assert turn_text({"content": parts}) == "ab"


@pytest.fixture(scope="module")
def served(chat_model, tmp_path_factory) -> Iterator[tuple[int, int]]:
    """Returns the ports of a running page and endpoint."""
    pytest.importorskip("gradio", reason="gradio is not installed (extra chat)")
    pytest.importorskip("openai", reason="openai is not installed (extra chat)")
    page, api = free_port(), free_port()
    command = [sys.executable, "-m", "eval", "serve", f"model={chat_model}", "dtype=float32"]
    log = tmp_path_factory.mktemp("serve") / "log"
    with (
        log.open("w") as file,
        subprocess.Popen(
            [*command, "device=cpu", f"port={page}", f"api_port={api}"],
            cwd=ROOT,
            env=os.environ | QUIET,
            stdout=file,
            stderr=subprocess.STDOUT,
        ) as process,
    ):
        try:
            end = time.monotonic() + limit(150)
            while "\npage: " not in log.read_text():
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < end, log.read_text()
                time.sleep(0.2)
            yield page, api
        finally:
            process.terminate()
            assert process.wait(limit(30)) == 0, log.read_text()
    with socket.socket() as probe:  # the endpoint has ended with it
        assert probe.connect_ex(("127.0.0.1", api)) != 0


def test_scores_are_computed_by_the_endpoint(served, chat_model, loaded):
    body = {"prompt": [[5, 6, 7]], "max_tokens": 1, "temperature": 0, "echo": True, "logprobs": 1}
    request = Request(
        f"http://127.0.0.1:{served[1]}/v1/completions", json.dumps(body).encode(), method="POST"
    )
    with urlopen(request, timeout=60) as answer:
        found = json.load(answer)["choices"][0]["logprobs"]["token_logprobs"]
    with torch.no_grad():
        logits = loaded.model(input_ids=torch.tensor([[5, 6, 7]])).logits[0].log_softmax(-1)
    assert found[1:3] == pytest.approx([logits[0, 6].item(), logits[1, 7].item()], abs=1e-4)


def test_the_openai_client_receives_the_generated_text(served, chat_model, loaded):
    from openai import OpenAI

    client = OpenAI(base_url=f"http://127.0.0.1:{served[1]}/v1", api_key="none")
    asked: Any = {"model": str(chat_model), "messages": [user("one")], "max_tokens": 12}
    said = client.chat.completions.create(**asked, temperature=0).choices[0].message.content
    ids = conversation_ids(loaded, [user("one")])
    whole = loaded.model.generate(ids, do_sample=False, max_new_tokens=12)[0, ids.shape[1] :]
    assert said == loaded.tokenizer.decode(whole, skip_special_tokens=True)
    chunks = list(client.chat.completions.create(**asked, temperature=0, stream=True))
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == said
    assert len(chunks) > 2


@pytest.mark.parametrize(
    ("path", "changes", "words"),
    [
        ("chat/completions", {"messages": []}, "messages: expected a non-empty list"),
        ("chat/completions", {"max_tokens": 0}, "max_tokens=0"),
        ("chat/completions", {"max_tokens": -1, "stream": True}, "max_tokens=-1"),
        ("chat/completions", {"messages": [user("\ud83d")]}, "the unpaired surrogate"),
        ("chat/completions", {"messages": [user("long " * 200)]}, "context length is 512"),
        ("chat/completions", {"model": "other"}, "Server is pinned"),
        ("chat/completions", {"nonsense": 1}, "Unexpected fields"),
        (
            "completions",
            {"prompt": "long " * 200},
            "prompt: the prompt has 1000 tokens, but the model's context length is 512",
        ),
        ("completions", {"prompt": 3}, "prompt: expected non-empty text"),
        ("responses", {"input": []}, "input: expected a non-empty list"),
    ],
)
def test_the_endpoint_rejects_invalid_requests(served, path, changes, words):
    body = {"messages": [user("one")], "max_tokens": 4} if path.startswith("chat") else {}
    request = Request(
        f"http://127.0.0.1:{served[1]}/v1/{path}",
        json.dumps(body | changes).encode(),
        {"Content-Type": "application/json"},
    )
    with pytest.raises(HTTPError) as caught:
        urlopen(request, timeout=60)
    error = json.load(caught.value)["error"]
    assert (caught.value.code, error["type"]) == (400, "invalid_request_error")
    assert words in error["message"]


def test_requests_of_every_kind_are_answered(served, chat_model, loaded):
    """Requests are normalized before they are answered.

    `developer` becomes `system`, parts are joined, special tokens in messages are text, and an
    answer is limited to the context length.
    """
    from openai import OpenAI

    client = OpenAI(base_url=f"http://127.0.0.1:{served[1]}/v1", api_key="none")
    parts = [{"type": "text", "text": "o"}, {"type": "text", "text": "</s>ne"}]
    asked: list[Any] = [{"role": "developer", "content": "be kind"}, user(parts)]
    settings: dict[str, Any] = {"model": str(chat_model), "temperature": 0}
    found = client.chat.completions.create(messages=asked, max_tokens=8, **settings)
    system = {"role": "system", "content": "be kind"}
    ids = conversation_ids(loaded, [system, user("o</s>ne")])
    whole = loaded.model.generate(ids, do_sample=False, max_new_tokens=8)[0, ids.shape[1] :]
    expected = loaded.tokenizer.decode(whole, skip_special_tokens=True)
    assert found.choices[0].message.content == expected
    assert found.usage.prompt_tokens == ids.shape[1]
    long = client.completions.create(prompt="a" * 500, max_tokens=4000, **settings)
    assert long.usage.total_tokens <= 512
    said = client.responses.create(
        input="one", instructions="be kind", max_output_tokens=16, stream=False, **settings
    )
    assert said.usage.input_tokens == conversation_ids(loaded, [system, user("one")]).shape[1]


@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_answers_in_a_browser(served, width):
    with browser.page() as page:
        page.open(f"http://127.0.0.1:{served[0]}", width, 800)
        page.wait("!!document.querySelector('textarea')")
        assert "Headwater" in page.text()
        page.type("textarea", "one question")
        page.wait("document.querySelectorAll('.message.bot').length > 0")
        page.wait("document.querySelector('.message.bot').innerText.trim().length > 0")
        assert "one question" in page.text()
        assert page.js("document.documentElement.scrollWidth") <= width
