"""vLLM behind `eval serve` computes what `transformers` computes, and ends with it."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import psutil
import pytest
import torch

from eval.scores.config import LmEvalConfig
from eval.scores.harness import lm_eval
from tests.serving.conftest import KEY, WINDOW, Served, start, wait_for_line

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
NEW_TOKENS = 32
ENDS = [0, 1, 2]
"""Ids that are not generated, so that every answer has the same length."""


@pytest.fixture(scope="module")
def stock(windowed_model: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(windowed_model, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def tokenizer(windowed_model: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(windowed_model)


def ask(served: Served, path: str, body: dict[str, Any] | None = None, key: str = KEY) -> Any:
    """Returns the answer of the endpoint to a request."""
    data = None if body is None else json.dumps(body).encode()
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    with urlopen(Request(f"http://127.0.0.1:{served.api}/{path}", data, headers)) as answer:
        return json.load(answer)


def prompt(length: int) -> list[int]:
    return torch.randint(3, 259, (length,), generator=torch.Generator().manual_seed(9)).tolist()


def greedy_body(model: Path) -> dict[str, Any]:
    """Returns the settings of a request for NEW_TOKENS ids, none of them of ENDS."""
    return {
        **{"model": str(model), "max_tokens": NEW_TOKENS, "temperature": 0, "ignore_eos": True},
        **{"logit_bias": {str(end): -100 for end in ENDS}, "return_token_ids": True},
    }


def greedy(model: Any, ids: list[int]) -> list[int]:
    """Returns the ids that `transformers` adds to a prompt, as greedy_body asks for them."""
    ends = [[end] for end in ENDS]
    made = model.generate(
        torch.tensor([ids]), do_sample=False, max_new_tokens=NEW_TOKENS, bad_words_ids=ends
    )
    found = made[0, len(ids) :].tolist()
    assert len(found) == NEW_TOKENS
    return found


def log_probabilities(model: Any, ids: list[int]) -> torch.Tensor:
    with torch.no_grad():
        scores = torch.log_softmax(model(torch.tensor([ids])).logits[0], -1)
    return scores[:-1].gather(-1, torch.tensor(ids[1:])[:, None])[:, 0]


@pytest.mark.parametrize("length", [1, 3, 9, 100, 400])
def test_greedy_tokens_are_equal(vllm, windowed_model, stock, length):
    """Prompts shorter and longer than the window."""
    ids = prompt(length)
    answer = ask(vllm, "v1/completions", greedy_body(windowed_model) | {"prompt": ids})
    assert answer["choices"][0]["token_ids"] == greedy(stock, ids)


def test_log_probabilities_are_equal_and_have_the_window(vllm, windowed_model, stock):
    from transformers import AutoModelForCausalLM

    ids = prompt(400)
    body = {"model": str(windowed_model), "prompt": ids, "max_tokens": 1, "echo": True}
    found = ask(vllm, "v1/completions", body | {"logprobs": 1, "temperature": 0})
    scores = torch.tensor(found["choices"][0]["logprobs"]["token_logprobs"][1:-1])
    assert (scores - log_probabilities(stock, ids)).abs().max() < 1e-4
    full = AutoModelForCausalLM.from_pretrained(windowed_model, sliding_window=None)
    gaps = (scores - log_probabilities(full.float().eval(), ids)).abs()
    assert gaps[: WINDOW - 2].max() < 1e-4
    assert gaps.max() > 0.01


def test_a_chat_has_the_template_of_the_model(vllm, windowed_model, stock, tokenizer):
    chat = [{"role": "user", "content": "one"}, {"role": "assistant", "content": "two"}]
    chat.append({"role": "user", "content": "three"})
    rendered = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    ids = tokenizer.encode(rendered, add_special_tokens=False)
    answer = ask(vllm, "v1/chat/completions", greedy_body(windowed_model) | {"messages": chat})
    assert answer["prompt_token_ids"] == ids
    assert answer["choices"][0]["token_ids"] == greedy(stock, ids)


def test_a_chat_through_the_page(vllm, windowed_model):
    """The page asks for the key, and continues a conversation with the text of the endpoint."""
    from gradio_client import Client

    with pytest.raises(Exception, match=r"(?i)auth|login|credentials"):
        Client(f"http://127.0.0.1:{vllm.page}", verbose=False).predict("one", api_name="/chat")
    client = Client(f"http://127.0.0.1:{vllm.page}", auth=("me", KEY), verbose=False)
    chat: list[dict[str, str]] = []
    said = []
    for question in ("one", "two", "three", "four"):
        chat.append({"role": "user", "content": question})
        said.append(client.predict(question, "", 0, 0, 16, api_name="/chat"))
        body = {"model": str(windowed_model), "messages": chat}
        answer = ask(vllm, "v1/chat/completions", body | {"temperature": 0, "max_tokens": 16})
        text = answer["choices"][0]["message"]["content"]
        assert said[-1] == (text if text.strip() else "(no text)")
        chat.append({"role": "assistant", "content": said[-1]})
    assert len(set(said)) > 1


def test_the_key_is_required(vllm):
    assert ask(vllm, "v1/models")["data"]
    with pytest.raises(HTTPError) as caught:
        ask(vllm, "v1/models", key="wrong")
    assert caught.value.code == 401


def test_nothing_listens_beyond_this_machine(vllm):
    listening = {
        connection.laddr.ip
        for process in vllm.processes()
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    }
    assert listening
    assert listening <= {"127.0.0.1", "::1"}


def test_scores_through_the_endpoint_are_those_of_transformers(
    vllm, windowed_model, tasks, tmp_path
):
    found = {}
    for name, settings in {
        "process": {},
        "endpoint": {"endpoint": vllm.endpoint, "api_key": KEY},
    }.items():
        out = tmp_path / name
        lm_eval(
            LmEvalConfig(
                models={"m": str(windowed_model)}, task_folder=str(tasks), out=str(out), limit=6,
                dtype="float32", device="cpu", **settings,
            )
        )  # fmt: skip
        found[name] = json.loads(out.read_text())["models"]["m"]["tasks"]
    for task, entry in found["process"].items():
        assert found["endpoint"][task]["each"] == entry["each"]
        for metric, score in entry["metrics"].items():
            other = found["endpoint"][task]["metrics"][metric]["value"]
            assert other == pytest.approx(score["value"], rel=1e-4)


@pytest.mark.parametrize(
    ("moment", "number"),
    [("non-default args", signal.SIGKILL), ("Initializing a V1 LLM engine", signal.SIGTERM)],
)
def test_nothing_is_left_when_ended_at_the_start(windowed_model, tmp_path, moment, number):
    """While the server starts, and while its engine loads and compiles."""
    served = start(windowed_model, tmp_path, "page=false")
    wait_for_line(served, moment)
    below = served.processes()
    served.process.send_signal(number)
    served.process.wait()
    _, left = psutil.wait_procs(below[1:], timeout=60)
    assert left == []


def test_nothing_is_left_when_killed_in_the_middle_of_an_answer(windowed_model, tmp_path):
    served = start(windowed_model, tmp_path, "page=false")
    wait_for_line(served, "\nendpoint: ")
    below = served.processes()
    assert len(below) > 3  # this one, the guard, the server and its engine
    body = greedy_body(windowed_model) | {"prompt": prompt(9), "max_tokens": 400, "stream": True}
    headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
    request = Request(f"{served.endpoint}/completions", json.dumps(body).encode(), headers)
    with urlopen(request) as answer:
        assert answer.readline().startswith(b"data: ")
        served.process.kill()
        served.process.wait()
        _, left = psutil.wait_procs(below[1:], timeout=60)
    assert left == []
