"""The lm-eval model of an endpoint that speaks OpenAI's protocol, such as `eval serve` or vLLM.

Prompts are sent as token ids, encoded by the tokenizer in the model's folder, so that scores do not
depend on how the server adds special tokens.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from lm_eval.models.openai_completions import LocalCompletionsAPI

from conf.errors import InputError
from eval.scores.config import LmEvalConfig
from eval.tasks.checked_lm import CheckedLM

PROBE = {"max_tokens": 1, "temperature": 0, "echo": True, "logprobs": 1}


class EndpointLM(CheckedLM, LocalCompletionsAPI):
    """Log-likelihoods and texts of the model behind an endpoint, requested concurrently."""

    spare = 0  # one of the model's positions is for the token that the server generates


def endpoint_model(config: LmEvalConfig, folder: Path) -> EndpointLM:
    """Returns the lm-eval model of an endpoint.

    Args:
        config: The settings, with `endpoint`.
        folder: The folder of the model, whose tokenizer is used.

    Raises:
        InputError: The endpoint does not answer, or does not return log-probabilities.
    """
    assert config.endpoint is not None
    url = config.endpoint.rstrip("/")
    headers = {"Authorization": f"Bearer {config.api_key or 'none'}"}
    served = _request(f"{url}/models", headers)["data"]
    name = next((one["id"] for one in served if Path(one["id"]) == folder), served[0]["id"])
    settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    limits = [settings["max_position_embeddings"], served[0].get("max_model_len")]
    model = EndpointLM(
        model=name,
        base_url=f"{url}/completions",
        tokenizer=str(folder),
        tokenizer_backend="huggingface",
        max_length=min(limit for limit in limits if limit),
        num_concurrent=max(2, config.batch_size),
        header=headers,
        max_retries=3,
        timeout=3600,
    )
    _check_answer(f"{url}/completions", headers, name, model)
    return model


def _check_answer(url: str, headers: dict[str, str], name: str, model: EndpointLM) -> None:
    """Raises InputError unless the endpoint returns a log-probability per token of a prompt."""
    ids = model.tok_encode("The answer is 1.")
    choice = _request(url, headers, {"model": name, "prompt": ids, **PROBE})["choices"][0]
    found = (choice.get("logprobs") or {}).get("token_logprobs") or []
    if len(found) != len(ids) + 1:
        raise InputError(
            f"endpoint={url.removesuffix('/completions')}: it returns no log-probability per token "
            "of a prompt (echo with logprobs), which scores need. Use eval serve, vLLM or "
            "another server that does, or leave out endpoint=."
        )


def _request(url: str, headers: dict[str, str], body: dict[str, Any] | None = None) -> Any:
    """Returns the JSON answer to a request.

    Raises:
        InputError: The server does not answer, or answers with an error.
    """
    data = None if body is None else json.dumps(body).encode()
    request = Request(url, data, {**headers, "Content-Type": "application/json"})
    try:
        with urlopen(request, timeout=600) as response:
            return json.load(response)
    except HTTPError as error:
        text = error.read().decode(errors="replace")
        raise InputError(
            f"endpoint: {url} answers with status {error.code} ({text:.200}). Check endpoint= and "
            "api_key=."
        ) from None
    except (URLError, OSError, ValueError) as error:
        raise InputError(
            f"endpoint: {url} does not answer ({error}). Start a server, for example with "
            "python -m eval serve, and give its address with /v1."
        ) from None
