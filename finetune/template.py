"""Chooses the chat template of a tuning job: a file of `conf/chat_template/`, or the model's own.

A template of `conf/chat_template/` has a training twin that marks the answers. For any other
template, an answer is the text between the prompt that a server sends and the special token that
ends the turn. `tokens.render` finds both by rendering the conversation turn by turn.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2

from conf.chat import DEFAULT, ChatTemplate, named_template, own_template, template_names
from conf.errors import InputError
from conf.tokenizer_folder import read_template

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

QUESTION, ANSWER = "QUESTION", "ANSWER"
PROBE = [
    {"role": "user", "content": QUESTION},
    {"role": "assistant", "content": ANSWER},
    {"role": "user", "content": QUESTION},
    {"role": "assistant", "content": ANSWER},
]


def choose_template(given: ChatTemplate | None, model: Path) -> tuple[ChatTemplate, str | None]:
    """Returns the template to tune with, and a sentence if it replaces that of the model.

    Without a given template, that is the model's own, or DEFAULT if the model has none.
    """
    own = read_template(model)
    if given is None:
        return (named_template(DEFAULT) if own is None else own_template(own)), None
    if own in (None, given.template):
        return given, None
    return given, (
        f"chat_template={given.name} replaces the chat template of model={model}. Without "
        "chat_template, the model keeps its own."
    )


def with_end(template: ChatTemplate, tokenizer: PreTrainedTokenizerBase) -> ChatTemplate:
    """Returns a template that has no training twin with the token that ends an answer.

    Other templates are returned as they are.

    Raises:
        InputError: the answers cannot be found in conversations of this template.
    """
    from finetune.tokens import render

    if template.training_template is not None:
        return template
    try:
        found = replace(template, end_token=_end_of_answer(template, tokenizer))
        render({"messages": PROBE}, found, tokenizer)
    except (ValueError, jinja2.TemplateError) as error:
        names = ", ".join(template_names())
        raise InputError(
            f"chat_template=null: the answers cannot be found in the model's own chat template, "
            f"which {error}. Choose the template that replaces it, as in "
            f"chat_template=chatml (known: {names})."
        ) from None
    return found


def _end_of_answer(template: ChatTemplate, tokenizer: PreTrainedTokenizerBase) -> str:
    """Returns the first special token after an answer.

    Raises:
        ValueError: there is none.
    """
    from finetune.tokens import served

    after = served(template, PROBE[:2], tokenizer, asks=False).rpartition(ANSWER)[2]
    listed: Any = tokenizer.added_tokens_decoder.values()
    special = {token.content for token in listed if token.special}
    found = [token for token in special if token and token in after]
    if not found:
        raise ValueError("does not end an answer with a special token")
    # One special token may begin with another one, such as <|end|> with a shorter <|end.
    return min(found, key=lambda token: (after.index(token), -len(token)))
