"""Completions that `transformers serve` lacks: prompts of token ids, and log-probabilities.

lm-eval needs both to score a model through an endpoint, as vLLM and other servers offer them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from threading import Lock
from typing import TYPE_CHECKING, Any

from eval.chat.requests import DEFAULT_MAX_TOKENS, TOO_LONG, BadRequest, Body

if TYPE_CHECKING:
    import torch

MAX_LOGPROBS = 20
KNOWN = ("model", "prompt", "max_tokens", "temperature", "logprobs", "echo", "stop", "seed", "n")
MORE = ("top_p", "best_of", "stream")
Ids = list[int]


def is_scored(body: Body) -> bool:
    """Returns whether a request has ids, several prompts, `echo` or `logprobs`."""
    return isinstance(body.get("prompt"), list) or any(
        body.get(key) not in (None, False) for key in ("echo", "logprobs")
    )


class ScoredCompletions:
    """Answers such requests with the model of the server.

    load: returns the model and the tokenizer.
    longest: context length of the model in tokens.
    """

    def __init__(self, load: Callable[[], tuple[Any, Any]], longest: int) -> None:
        self._load, self._longest, self._lock = load, longest, Lock()

    def answer(self, body: Body) -> Body:
        """Returns the response to a request.

        Raises:
            BadRequest: The request is invalid.
        """
        unknown = [key for key in body if key not in (*KNOWN, *MORE)]
        if unknown:
            raise BadRequest(f"{unknown[0]}: not supported with token ids, echo or logprobs.")
        if body.get("stream"):
            raise BadRequest("stream: not supported with token ids, echo or logprobs.", "stream")
        shown = body.get("logprobs")
        if shown is not None and not (isinstance(shown, int) and 0 <= shown <= MAX_LOGPROBS):
            raise BadRequest(f"logprobs={shown!r:.40}: expected 0 to {MAX_LOGPROBS}.", "logprobs")
        _, tokenizer = self._load()
        prompts = self._prompts(body.get("prompt"), tokenizer)
        limit = body.get("max_tokens", DEFAULT_MAX_TOKENS)
        with self._lock:
            choices = [
                self._choice(number, prompt, min(limit, self._longest - len(prompt)), body)
                for number, prompt in enumerate(prompts)
            ]
        read = sum(map(len, prompts))
        written = sum(choice.pop("written") for choice in choices)
        return {
            "id": f"cmpl-{time.time_ns():x}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": body.get("model"),
            "choices": choices,
            "usage": {
                "prompt_tokens": read,
                "completion_tokens": written,
                "total_tokens": read + written,
            },
        }

    def _prompts(self, given: Any, tokenizer: Any) -> list[Ids]:
        """Returns the ids of each prompt of a request."""
        several = given if isinstance(given, list) else [given]
        if given and several is given and all(_is_id(entry) for entry in several):
            several = [several]
        prompts = [
            tokenizer(entry)["input_ids"] if isinstance(entry, str) else entry for entry in several
        ]
        if not prompts or not all(
            isinstance(prompt, list) and prompt and all(map(_is_id, prompt)) for prompt in prompts
        ):
            raise BadRequest(
                "prompt: expected text, a list of token ids, or a list of these, without an empty "
                "one.",
                "prompt",
            )
        for prompt in prompts:
            if max(prompt) >= len(tokenizer):
                raise BadRequest(f"prompt: there is no token with id {max(prompt)}.", "prompt")
            if len(prompt) >= self._longest:
                raise BadRequest(
                    f"prompt: the prompt has {len(prompt)} tokens, but the model's context length "
                    f"is {self._longest}, including the answer. Shorten the prompt.",
                    "prompt",
                    TOO_LONG,
                )
        return prompts

    def _choice(self, number: int, prompt: Ids, limit: int, body: Body) -> Body:
        """Returns the entry of one prompt in the response."""
        import torch

        model, tokenizer = self._load()
        written, ended = self._generate(prompt, limit, body)
        first = 0 if body.get("echo") else len(prompt)
        ids = [*prompt, *written][first:]
        text = tokenizer.decode(ids, skip_special_tokens=not body.get("echo"))
        stops = body.get("stop") or []
        cut = [text.find(stop) for stop in ([stops] if isinstance(stops, str) else stops)]
        if found := [place for place in cut if place >= 0 and not body.get("echo")]:
            text = text[: min(found)]
        logprobs = None
        if body.get("logprobs") is not None:
            with torch.inference_mode():
                logits = model(input_ids=_row([*prompt, *written], model)).logits[0]
            scores = torch.log_softmax(logits[max(first - 1, 0) : -1].float(), -1)
            logprobs = _logprobs(scores, ids, body["logprobs"], tokenizer, is_first=first == 0)
        return {
            "index": number,
            "text": text,
            "logprobs": logprobs,
            "finish_reason": "stop" if ended or found else "length",
            "written": len(written),
        }

    def _generate(self, prompt: Ids, limit: int, body: Body) -> tuple[Ids, bool]:
        """Returns the ids that follow a prompt, and whether they end before the limit."""
        import torch

        model, tokenizer = self._load()
        temperature = body.get("temperature", 1.0)
        sampling: dict[str, Any] = {"do_sample": False}
        if temperature > 0:
            torch.manual_seed(body.get("seed", 0))
            top_p = body.get("top_p", 1.0)
            sampling = {"do_sample": True, "temperature": temperature, "top_p": top_p, "top_k": 0}
        if body.get("stop"):
            sampling |= {"stop_strings": body["stop"], "tokenizer": tokenizer}
        ids = _row(prompt, model)
        with torch.inference_mode():
            whole = model.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=limit, **sampling
            )
        written = whole[0, len(prompt) :].tolist()
        return written, len(written) < limit


def _row(ids: Ids, model: Any) -> torch.Tensor:
    import torch

    return torch.tensor([ids], device=model.device)


def _logprobs(
    scores: torch.Tensor, ids: Sequence[int], shown: int, tokenizer: Any, *, is_first: bool
) -> Body:
    """Returns the log-probabilities in OpenAI's format.

    Tokens are spelled as in the vocabulary: text could be the same for two of them.

    Args:
        scores: Log-probabilities (tokens, vocabulary) of the tokens that have a context.
        ids: The tokens.
        shown: Number of likeliest tokens to list per position, next to the token itself.
        tokenizer: The tokenizer.
        is_first: Whether the first token has no context, so that its entries are None.
    """
    spelled = tokenizer.convert_ids_to_tokens
    chosen: list[float | None] = [None] if is_first else []
    top: list[dict[str, float] | None] = [None] if is_first else []
    for row, token in zip(scores, ids[len(chosen) :], strict=True):
        best = row.topk(shown)
        known = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        chosen.append(row[token].item())
        listed = {spelled(other): value for other, value in known}
        top.append(listed | {spelled(token): row[token].item()})
    tokens = spelled(list(ids))
    return {"tokens": tokens, "token_logprobs": chosen, "top_logprobs": top, "text_offset": []}


def _is_id(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
