"""The lm-eval model of an endpoint that speaks OpenAI's protocol, such as `eval serve` or vLLM.

Prompts are sent as token ids, encoded by the tokenizer in the model's folder, so that scores do not
depend on how the server adds special tokens.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from conf.errors import InputError
from eval.scores.config import LmEvalConfig
from eval.tasks.checked_lm import CheckedLM

SCORED = {"max_tokens": 1, "temperature": 0, "echo": True, "logprobs": 1}
"""Settings of a request for the log-probability of each token of a prompt."""
TRIES = 3
NOT_SENT = ("do_sample", "until", "max_gen_toks", "temperature")
"""Settings of a task that have another name in a request."""
Pair = tuple[Any, list[int], list[int]]


class Endpoint:
    """An endpoint, its key and the name of its model.

    Raises:
        InputError: The endpoint does not answer.
    """

    def __init__(self, url: str, key: str | None, folder: Path) -> None:
        self.url, self._key = url.rstrip("/"), key
        served = self.ask("models")["data"]
        self.model = next((one for one in served if one["id"] == str(folder)), served[0])

    def ask(self, path: str, body: dict[str, Any] | None = None) -> Any:
        """Returns the JSON answer to a request, which is repeated if the server fails."""
        url = f"{self.url}/{path}"
        headers = {"Authorization": f"Bearer {self._key or 'none'}"}
        data = None if body is None else json.dumps(body).encode()
        request = Request(url, data, {**headers, "Content-Type": "application/json"})
        for left in reversed(range(TRIES)):
            try:
                with urlopen(request, timeout=3600) as response:
                    return json.load(response)
            except HTTPError as error:
                text = error.read().decode(errors="replace")
                if error.code < 500 or not left:
                    raise InputError(
                        f"endpoint: {url} answers with status {error.code} ({text:.300}). Check "
                        "endpoint= and api_key=."
                    ) from None
            except (URLError, OSError, ValueError) as error:
                if not left:
                    raise InputError(
                        f"endpoint: {url} does not answer ({error}). Start a server, for example "
                        "with python -m eval serve, and give its address with /v1."
                    ) from None

    def complete(self, ids: list[int], settings: dict[str, Any]) -> Any:
        """Returns the completion of a prompt."""
        body = {"model": self.model["id"], "prompt": ids, **settings}
        return self.ask("completions", body)["choices"][0]


class CompletionsLM(TemplateLM):
    """The methods of an lm-eval model, answered by an endpoint.

    endpoint: the endpoint.
    tokenizer: tokenizer of the model.
    longest: context length of the model in tokens.
    at_a_time: number of requests sent at a time.
    """

    max_gen_toks = 256

    def __init__(self, endpoint: Endpoint, tokenizer: Any, longest: int, at_a_time: int) -> None:
        super().__init__()
        self.endpoint, self.tokenizer, self.max_length = endpoint, tokenizer, longest
        self._at_a_time = at_a_time

    @property
    def eot_token_id(self) -> int:
        """Id of the token that ends a document."""
        return int(self.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        """Id of the token before a text without context, as in lm-eval's `hf` model."""
        bos = self.tokenizer.bos_token_id
        return self.eot_token_id if bos is None else int(bos)

    @property
    def tokenizer_name(self) -> str:
        """Name of the tokenizer, for caches of requests."""
        return str(self.tokenizer.name_or_path)

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """Returns a conversation in the chat format of the model."""
        return str(
            self.tokenizer.apply_chat_template(
                chat_history,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=not add_generation_prompt,
            )
        )

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **_: Any
    ) -> list[int]:
        """Returns the ids of a text, without special tokens unless asked for."""
        return list(self.tokenizer.encode(string, add_special_tokens=bool(add_special_tokens)))

    def _loglikelihood_tokens(self, requests: Sequence[Pair], **_: Any) -> list[tuple[float, bool]]:
        return self._map(self._score, requests)

    def _score(self, request: Pair) -> tuple[float, bool]:
        """Returns the log-likelihood of a choice, and whether greedy decoding produces it."""
        _, context, choice = request
        ids = [*context, *choice][-(self.max_length - 1) :]
        logprobs = self.endpoint.complete(ids, SCORED)["logprobs"]
        places = range(len(ids) - len(choice), len(ids))
        found = [logprobs["token_logprobs"][place] for place in places]
        best = [max(logprobs["top_logprobs"][place].values()) for place in places]
        return sum(found), found == best

    def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> list[float]:
        """Returns the log-likelihood of each text, in windows of the context length."""
        windows = [
            list(
                map(
                    make_disjoint_window,
                    get_rolling_token_windows(
                        token_list=self.tok_encode(request.args[0]),
                        prefix_token=self.prefix_token_id,
                        max_seq_len=self.max_length - 2,
                        context_len=1,
                    ),
                )
            )
            for request in requests
        ]
        flat = [(None, *window) for each in windows for window in each]
        scores = iter(self._loglikelihood_tokens(flat))
        return [sum(next(scores)[0] for _ in each) for each in windows]

    def generate_until(self, requests: Any, disable_tqdm: bool = False) -> list[str]:
        """Returns the text that continues each context, up to the first of its stop sequences."""
        return self._map(self._continue, [request.args[:2] for request in requests])

    def _continue(self, request: tuple[str, dict[str, Any]]) -> str:
        context, given = request
        settings = dict(normalize_gen_kwargs(dict(given), self.max_gen_toks))
        limit, stops = settings["max_gen_toks"], [stop for stop in settings["until"] if stop]
        sent = {key: value for key, value in settings.items() if key not in NOT_SENT}
        sent |= {"max_tokens": limit, "temperature": settings.get("temperature", 0.0)}
        sent |= {"stop": stops[:4]} if stops else {}
        ids = self.tok_encode(context)[-(self.max_length - limit) :]
        text = str(self.endpoint.complete(ids, sent)["text"])
        for stop in stops:
            text = text.split(stop)[0]
        return text

    def _map(self, answer: Callable[[Any], Any], requests: Sequence[Any]) -> list[Any]:
        with ThreadPoolExecutor(self._at_a_time) as pool:
            return list(pool.map(answer, requests))


class EndpointLM(CheckedLM, CompletionsLM):
    """The model of an endpoint whose errors name the requests that it cannot answer."""

    spare = -1  # the last position is for the token that the server generates


def endpoint_model(config: LmEvalConfig, folder: Path) -> EndpointLM:
    """Returns the lm-eval model of an endpoint.

    Args:
        config: The settings, with `endpoint`.
        folder: The folder of the model, whose tokenizer is used.

    Raises:
        InputError: The endpoint does not answer, or does not return log-probabilities.
    """
    from transformers import AutoTokenizer

    assert config.endpoint is not None
    endpoint = Endpoint(config.endpoint, config.api_key, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    stated = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    limits = [stated.get("max_position_embeddings"), endpoint.model.get("max_model_len")]
    longest = min([limit for limit in limits if limit], default=2048)
    model = EndpointLM(endpoint, tokenizer, longest, config.batch_size)
    ids = model.tok_encode("The answer is 1.")
    found = (endpoint.complete(ids, SCORED).get("logprobs") or {}).get("token_logprobs") or []
    if len(found) < len(ids):
        raise InputError(
            f"endpoint={config.endpoint}: it returns no log-probability per token of a prompt "
            "(echo with logprobs), which scores need. Use eval serve, vLLM or another server that "
            "does, or leave out endpoint=."
        )
    return model
