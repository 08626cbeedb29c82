"""Scores through an endpoint equal those that this process computes."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch

from conf.errors import InputError
from eval.chat.requests import BadRequest
from eval.chat.scored_completions import ScoredCompletions, is_scored
from eval.load_model import LoadedModel, load_model
from eval.scores.config import LmEvalConfig
from eval.scores.endpoint_lm import endpoint_model
from eval.scores.harness import lm_eval
from tests.ports import free_port

LONGEST = 512


@pytest.fixture(scope="module")
def loaded(model: Path) -> LoadedModel:
    return load_model(str(model), "float32", "cpu")


@pytest.fixture(scope="module")
def scored(loaded: LoadedModel) -> ScoredCompletions:
    return ScoredCompletions(lambda: (loaded.model, loaded.tokenizer), LONGEST)


@pytest.fixture(scope="module")
def endpoint(model: Path, scored: ScoredCompletions) -> Iterator[str]:
    """The address of a server with a key, which answers as `eval serve` does."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._send(200, {"data": [{"id": str(model)}]})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if self.headers["Authorization"] != "Bearer secret":
                self._send(401, {"error": {"message": "the key is missing or wrong"}})
                return
            assert is_scored(body)
            self._send(200, scored.answer(body))

        def _send(self, status: int, content: dict[str, Any]) -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(json.dumps(content).encode())

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/v1"
        server.shutdown()
        thread.join()


def settings_of(model: Path, endpoint: str | None, **more: Any) -> LmEvalConfig:
    key = None if endpoint is None else "secret"
    return LmEvalConfig(
        models={"m": str(model)}, endpoint=endpoint, dtype="float32", device="cpu",
        **{"api_key": key, "out": "", **more},
    )  # fmt: skip


def test_scores_equal_those_of_the_process(model, tasks, endpoint, tmp_path):
    """Choices and bits per byte, of texts that are longer than the context, too."""
    found = {}
    for name, url in {"process": None, "endpoint": endpoint}.items():
        out = tmp_path / name
        lm_eval(settings_of(model, url, task_folder=str(tasks), out=str(out), limit=4))
        found[name] = json.loads(out.read_text())["models"]["m"]
    assert found["endpoint"]["settings"]["computed_in"] == f"endpoint {endpoint}"
    assert len(found["process"]["tasks"]) == 6
    for task, entry in found["process"]["tasks"].items():
        other = found["endpoint"]["tasks"][task]
        assert other["each"] == entry["each"]
        for metric, score in entry["metrics"].items():
            assert other["metrics"][metric]["value"] == pytest.approx(score["value"], rel=1e-5)


def test_generated_text_equals_that_of_the_process(model, endpoint):
    from lm_eval.api.instance import Instance

    from eval.scores.hf_lm import CheckedHFLM

    here = CheckedHFLM(pretrained=str(model), dtype="float32", device="cpu", batch_size=1)
    there = endpoint_model(settings_of(model, endpoint), model)
    asked: dict[str, dict[str, Any]] = {
        "for": {"until": ["e"]},
        "one": {"until": ["zz", "the"], "do_sample": False},
    }
    requests = [
        Instance("generate_until", {}, (text, settings | {"max_gen_toks": 24}), number)
        for number, (text, settings) in enumerate(asked.items())
    ]
    texts = there.generate_until(requests)
    assert texts == here.generate_until(requests, disable_tqdm=True)
    assert any(texts)


def test_log_probabilities_are_those_of_the_model(scored, loaded):
    """With and without `echo`; the likeliest tokens are spelled as in the vocabulary."""
    ids = loaded.tokenizer("for the").input_ids
    body = {"prompt": [ids, ids[:3]], "max_tokens": 2, "temperature": 0, "logprobs": 2}
    first, short = scored.answer(body)["choices"]
    whole = scored.answer(body | {"echo": True})["choices"][0]["logprobs"]
    written = loaded.tokenizer.convert_tokens_to_ids(first["logprobs"]["tokens"])
    with torch.no_grad():
        logits = loaded.model(input_ids=torch.tensor([ids + written])).logits[0]
    expected = logits.log_softmax(-1)[:-1].gather(-1, torch.tensor([*ids, *written])[1:, None])
    assert whole["token_logprobs"][0] is None
    assert whole["token_logprobs"][1:] == pytest.approx(expected[:, 0].tolist(), abs=1e-5)
    assert first["logprobs"]["token_logprobs"] == whole["token_logprobs"][-2:]
    assert [len(top) for top in first["logprobs"]["top_logprobs"]] == [2, 2]  # greedy: among them
    assert short["index"] == 1


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ({"prompt": []}, "prompt: expected text, a list of token ids"),
        ({"prompt": [[]]}, "prompt: expected text, a list of token ids"),
        ({"prompt": [1, -1]}, "prompt: expected text, a list of token ids"),
        ({"prompt": [1, 10**6]}, "there is no token with id 1000000"),
        ({"prompt": [1] * LONGEST}, "the prompt has 512 tokens, but the model's context length"),
        ({"prompt": [1], "logprobs": 21}, "logprobs=21: expected 0 to 20"),
        ({"prompt": [1], "stream": True}, "stream: not supported with token ids"),
        ({"prompt": [1], "suffix": "x"}, "suffix: not supported with token ids"),
    ],
)
def test_requests_that_cannot_be_answered(scored, body, sentence):
    with pytest.raises(BadRequest, match=sentence):
        scored.answer(body)


def test_endpoints_that_cannot_score_are_refused(model, endpoint, scored, monkeypatch):
    with pytest.raises(InputError, match=r"answers with status 401 .*the key is missing or wrong"):
        endpoint_model(settings_of(model, endpoint, api_key=None), model)
    with pytest.raises(InputError, match="/v1/models does not answer"):
        endpoint_model(settings_of(model, f"http://127.0.0.1:{free_port()}/v1"), model)
    monkeypatch.setattr(scored, "answer", lambda _: {"choices": [{"text": "", "logprobs": None}]})
    with pytest.raises(InputError, match="it returns no log-probability per token of a prompt"):
        endpoint_model(settings_of(model, endpoint), model)
    with pytest.raises(InputError, match="serves one model, but models names 2"):
        LmEvalConfig(models={"a": "a", "b": "b"}, endpoint=endpoint)
    with pytest.raises(InputError, match="endpoint=here: expected http://HOST:PORT/v1"):
        LmEvalConfig(models={"a": "a"}, endpoint="here")
