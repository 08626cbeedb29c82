"""A model for lm-eval that names the task and the sample of a request that it cannot answer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import normalize_gen_kwargs

from conf.errors import InputError
from eval.inloop.decoder_lm import DecoderLM

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance


class CheckedLM(TemplateLM):
    """A base that stands before a model's own, and checks what that one is asked.

    prefix: of the key `tasks` in errors.
    is_dry: checks requests without running the model; all scores are 0.
    cut: requests of each task whose context was too long for the model and lost its beginning.
    """

    prefix = ""
    is_dry = False
    _asked: Sequence[Instance] | None = None

    @property
    def cut(self) -> Counter[str]:
        """Requests whose context lost its beginning, per task."""
        return self.__dict__.setdefault("_cut", Counter())

    def loglikelihood(self, requests: Any, disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Returns the log-likelihood of each choice, and whether it is what the model would say.

        Raises:
            InputError: a choice has no tokens, or more than the model sees.
        """
        for request in requests:
            if not request.args[1]:
                raise InputError(self._sentence(request, "is empty. Give it text."))
        self._asked = requests
        try:
            return super().loglikelihood(requests, disable_tqdm)
        finally:
            self._asked = None

    def _loglikelihood_tokens(self, requests: Any, **rest: Any) -> list[tuple[float, bool]]:
        longest: int = self.max_length
        for asked, (_, context, choice) in zip(self._asked or (), requests, strict=False):
            if not choice:
                raise InputError(self._sentence(asked, "has no tokens. Give it text."))
            if not context:
                raise InputError(self._sentence(asked, "follows a context of spaces. Strip it."))
            if len(choice) > longest:
                why = f"has {len(choice)} tokens, more than the {longest} that the model sees."
                raise InputError(self._sentence(asked, f"{why} Shorten it, or drop the task."))
            if len(context) + len(choice) > longest + 1:
                self.cut[asked.task_name] += 1
        if self.is_dry:
            return [(0.0, False)] * len(requests)
        return super()._loglikelihood_tokens(requests, **rest)

    def generate_until(self, requests: Any, disable_tqdm: bool = False) -> list[str]:
        """Returns what the model writes.

        Raises:
            InputError: a task asks for more tokens than the model sees.
        """
        longest: int = self.max_length
        for request in requests:
            context, settings = request.args[:2]
            room = normalize_gen_kwargs(dict(settings), self.max_gen_toks)["max_gen_toks"]
            if room >= longest:
                raise InputError(
                    f"{self.prefix}tasks={request.task_name} lets the model write {room} tokens, "
                    f"but it sees {longest}, the question included. Lower max_gen_toks in the "
                    "task's generation_kwargs, or drop the task."
                )
            if len(self.tok_encode(context)) + room > longest:
                self.cut[request.task_name] += 1
        return super().generate_until(requests, disable_tqdm)

    def _sentence(self, request: Instance, what: str) -> str:
        choice = request.args[1].strip()
        return (
            f"{self.prefix}tasks={request.task_name}: of sample {request.doc_id} the choice "
            f"{request.idx} ({choice!r:.40}) {what}"
        )


class CheckedDecoderLM(CheckedLM, DecoderLM):
    """The model as it is spread while it trains."""
