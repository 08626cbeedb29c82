"""Tokenizes conversations into ids and labels, with the same ids in training as in serving.

A server encodes the conversation up to the marker at which the answer begins, and the model
continues from there. Each answer is therefore encoded separately from the text before it. Encoded
together, the marker and the first letters of the answer could merge into a token that a server
never sends.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import jinja2
from transformers.utils.chat_template_utils import render_jinja_template

from conf.chat import ChatTemplate
from conf.errors import InputError
from finetune.rows import Message, Row
from model.chat_tokens import ChatTokens
from model.loss import IGNORED

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CharRange = tuple[int, int]


def tokenize(
    rows: Sequence[Row], template: ChatTemplate, tokenizer: PreTrainedTokenizerBase
) -> Iterator[dict[str, list[int]]]:
    """Yields `input_ids` and `labels` of each conversation.

    Each token of an answer is its own label, and all other tokens have the label `IGNORED`. Special
    tokens that are spelled out in a message are encoded as text. If the template has no system
    turn, the text of that turn is put before the first question.

    Raises:
        InputError: the template refuses a conversation, its training twin renders a different text,
            or the twin does not mark exactly the answers that a server would ask for.
    """
    takes_system = has_system_turn(template, tokenizer)
    tokens = ChatTokens(tokenizer)
    for number, given in enumerate(rows, 1):
        row = given if takes_system else merge_system_turn(given)
        row = {key: tokens.shield(messages) for key, messages in row.items()}
        try:
            text, answers = render(row, template, tokenizer)
        except jinja2.TemplateError as error:
            raise InputError(
                f"conversation {number}: chat_template={template.name} rejects it ({error}). "
                "Remove the conversation, or choose another template."
            ) from None
        except ValueError as error:
            twin = template.training_template is not None
            subject = "training_template" if twin else "the template of the model"
            remedy = "Correct the template." if twin else "Choose a chat_template by name."
            raise InputError(
                f"chat_template={template.name}: in conversation {number}, {subject} {error}. "
                f"{remedy}"
            ) from None
        ids: list[int] = []
        labels: list[int] = []
        done = 0
        for start, end in answers:
            prompt = tokens.encode(text[done:start])
            answer = tokens.encode(text[start:end])
            ids += prompt + answer
            labels += [IGNORED] * len(prompt) + answer
            done = end
        rest = tokens.encode(text[done:])
        yield {"input_ids": ids + rest, "labels": labels + [IGNORED] * len(rest)}


def has_system_turn(template: ChatTemplate, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Returns whether the template renders the text of a system turn."""
    turns = [{"role": "system", "content": "SYSTEM"}, {"role": "user", "content": "USER"}]
    try:
        return "SYSTEM" in served(template, turns, tokenizer, asks=False)
    except jinja2.TemplateError:
        return False


def merge_system_turn(row: Row) -> Row:
    """Returns the conversation with a leading system turn merged into the first user turn.

    The merged turn is the system text, an empty line and the question.
    """
    key = "messages" if "messages" in row else "prompt"
    turns = row[key]
    if [turn["role"] for turn in turns[:2]] != ["system", "user"]:
        return row
    both = "\n\n".join(turn["content"] for turn in turns[:2] if turn["content"])
    return {**row, key: [{"role": "user", "content": both}, *turns[2:]]}


def render(
    row: Row, template: ChatTemplate, tokenizer: PreTrainedTokenizerBase
) -> tuple[str, list[CharRange]]:
    """Returns the text of a conversation, and the ranges of the answers that are trained on.

    Raises:
        jinja2.TemplateError: the template refuses the conversation.
        ValueError: the template and its training twin disagree; the message names the difference.
    """
    messages = row["messages"] if "messages" in row else row["prompt"] + row["completion"]
    text = served(template, messages, tokenizer, asks=False)
    turns = [place for place, message in enumerate(messages) if message["role"] == "assistant"]
    prompts = [served(template, messages[:turn], tokenizer, asks=True) for turn in turns]
    if template.training_template is None:
        spans = [
            _between(prompt, messages[turn], template.end_token, text)
            for turn, prompt in zip(turns, prompts, strict=True)
        ]
    else:
        spans = _marked(template.training_template, messages, tokenizer, text)
    if len(spans) != len(turns):
        raise ValueError(f"marks {len(spans)} of the {len(turns)} assistant turns")
    answers = []
    for turn, prompt, (start, end) in zip(turns, prompts, spans, strict=True):
        if prompt != text[:start]:
            raise ValueError("marks an answer that does not begin after the generation prompt")
        if turn >= len(row.get("prompt", [])):
            answers.append((start, end))
    return text, answers


def served(
    template: ChatTemplate,
    messages: list[Message],
    tokenizer: PreTrainedTokenizerBase,
    *,
    asks: bool,
) -> str:
    """Returns the text that a server sends, with `asks` up to where the model answers."""
    special: dict[str, Any] = tokenizer.special_tokens_map
    rendered: Any = render_jinja_template(
        [messages], chat_template=template.template, add_generation_prompt=asks, **special
    )
    return rendered[0][0]


def _marked(
    twin: str, messages: list[Message], tokenizer: PreTrainedTokenizerBase, text: str
) -> list[CharRange]:
    """Returns the ranges that the training twin of a template marks."""
    special: dict[str, Any] = tokenizer.special_tokens_map
    rendered: Any = render_jinja_template(
        [messages], chat_template=twin, return_assistant_tokens_mask=True, **special
    )
    (found,), (spans,) = rendered
    if found != text:
        raise ValueError("renders different text than template")
    return spans


def _between(prompt: str, answer: Message, end_token: str | None, text: str) -> CharRange:
    """Returns the range of an answer, which begins after its prompt and ends with `end_token`."""
    if not text.startswith(prompt):
        raise ValueError("renders the turns before an answer differently once it has been given")
    end = text.find(end_token or "", len(prompt)) + len(end_token or "")
    if answer["content"].strip() not in text[len(prompt) : end]:
        raise ValueError("renders an answer differently or does not end it")
    return len(prompt), end


def add_template_tokens(tokenizer: PreTrainedTokenizerBase, template: ChatTemplate) -> list[str]:
    """Adds the template, its special tokens and its end token to the tokenizer.

    The tokenizer of a model that keeps its own template is not changed. Returns the special tokens
    that the tokenizer lacked.
    """
    if template.training_template is None:
        return []
    known = tokenizer.get_vocab()
    missing = [token for token in template.special_tokens if token not in known]
    tokenizer.add_tokens(template.special_tokens, special_tokens=True)
    tokenizer.chat_template = template.template
    if template.end_token:
        tokenizer.eos_token = template.end_token
    return missing
