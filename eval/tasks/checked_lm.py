"""An lm-eval model that rejects requests it cannot answer, with errors that name the sample."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import normalize_gen_kwargs

from conf.errors import InputError

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance


class CheckedLM(TemplateLM):
    """A mixin that checks requests before the lm-eval model that follows it in the MRO sees them.

    prefix: prefix of the setting `tasks` in error messages.
    is_dry: checks requests without running the model; all scores are 0.
    spare: number of tokens that a request may have beyond `max_length`. The last one is only
        predicted, so it needs no position.
    """

    prefix = ""
    is_dry = False
    spare = 1
    _requests: Sequence[Instance] | None = None

    @property
    def truncated(self) -> Counter[str]:
        """Number of requests, keyed by task, whose context was too long and lost its beginning."""
        return self.__dict__.setdefault("_truncated", Counter())

    def loglikelihood(self, requests: Any, disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Returns the log-likelihood of each choice, and whether greedy decoding produces it.

        Raises:
            InputError: a choice has no tokens, or more tokens than the context length.
        """
        for request in requests:
            if not request.args[1]:
                raise InputError(self._describe(request, "is empty. Give it text."))
        self._requests = requests
        try:
            return super().loglikelihood(requests, disable_tqdm)
        finally:
            self._requests = None

    def _loglikelihood_tokens(self, requests: Any, **rest: Any) -> list[tuple[float, bool]]:
        longest: int = self.max_length + self.spare - 1
        for request, (_, context, choice) in zip(self._requests or (), requests, strict=False):
            if not choice:
                raise InputError(self._describe(request, "has no tokens. Give it text."))
            if not context:
                problem = (
                    "follows a context that consists of spaces only. Strip the choice, or change "
                    "the context."
                )
                raise InputError(self._describe(request, problem))
            if len(choice) > longest:
                problem = (
                    f"has {len(choice)} tokens, more than the model's context length of {longest}. "
                    "Shorten it, or remove the task."
                )
                raise InputError(self._describe(request, problem))
            if len(context) + len(choice) > longest + 1:
                self.truncated[request.task_name] += 1
        if self.is_dry:
            return [(0.0, False)] * len(requests)
        return super()._loglikelihood_tokens(requests, **rest)

    def generate_until(self, requests: Any, disable_tqdm: bool = False) -> list[str]:
        """Returns the generated texts.

        Raises:
            InputError: a task generates as many tokens as the context length, or more.
        """
        longest: int = self.max_length
        for request in requests:
            context, settings = request.args[:2]
            new_tokens = normalize_gen_kwargs(dict(settings), self.max_gen_toks)["max_gen_toks"]
            if new_tokens >= longest:
                raise InputError(
                    f"{self.prefix}tasks={request.task_name}: the task generates up to "
                    f"{new_tokens} tokens, but the model's context length is {longest}, including "
                    "the prompt. Lower max_gen_toks in the task's generation_kwargs, or remove "
                    "the task."
                )
            if len(self.tok_encode(context)) + new_tokens > longest:
                self.truncated[request.task_name] += 1
        return super().generate_until(requests, disable_tqdm)

    def _describe(self, request: Instance, problem: str) -> str:
        choice = request.args[1].strip()
        return (
            f"{self.prefix}tasks={request.task_name}: choice {request.idx} ({choice!r:.40}) of "
            f"sample {request.doc_id} {problem}"
        )
