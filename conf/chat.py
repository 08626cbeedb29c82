"""The schema of the chat templates in `conf/chat_template/`, and the text of chat messages."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import yaml
from omegaconf import MISSING

FOLDER = Path(__file__).parent / "chat_template"
DEFAULT = "danube"
"""Template for a model that has none."""
OWN = "own"
"""Name of a template that is in the folder of a model and not in `conf/chat_template/`."""
TEXT_PARTS = ("text", "input_text", "output_text")
"""Types of text parts in a message, in OpenAI's chat completions API and responses API."""


@dataclass
class ChatTemplate:
    """A chat format as two Jinja templates that render the same text.

    template: template for inference, exactly as published; stored in the exported folder.
    special_tokens: tokens that the template writes; those that a tokenizer lacks are added to it.
    end_token: the special token that ends an answer, null for the tokenizer's own eos_token.
    training_template: the same template with `{% generation %}` around each assistant answer and
        its end token, so that the loss covers only these tokens. null finds the answers by
        rendering the conversation up to each of them.
    """

    name: str = MISSING
    template: str = MISSING
    training_template: str | None = MISSING
    special_tokens: list[str] = field(default_factory=list)
    end_token: str | None = None


def named_template(name: str) -> ChatTemplate:
    """Returns the template of a file in `conf/chat_template/`."""
    return ChatTemplate(**yaml.safe_load((FOLDER / f"{name}.yaml").read_text(encoding="utf-8")))


def template_names() -> list[str]:
    """Returns the names of the files in `conf/chat_template/`."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def own_template(text: str) -> ChatTemplate:
    """Returns the chat template of a model: the file with the same text, or OWN."""
    known = map(named_template, template_names())
    return next((one for one in known if one.template == text), ChatTemplate(OWN, text, None))


def text_of(content: object) -> str:
    """Returns the text of a message's content.

    The content is a string, or a list of text parts in OpenAI's form, which are concatenated.

    Raises:
        ValueError: the content is something else; the message says what was found and expected.
    """
    if content is None:
        raise ValueError("expected text, found null")
    if isinstance(content, list) and content:
        return "".join(_text_of_part(part) for part in content)
    if not isinstance(content, str):
        raise ValueError(f"expected text or a list of text parts, found {content!r:.40}")
    return _checked(content)


def _text_of_part(part: object) -> str:
    kind = part.get("type") if isinstance(part, dict) else None
    if not isinstance(part, dict) or kind not in TEXT_PARTS:
        found = f"a part of type {kind!r}" if kind else f"{part!r:.40}"
        raise ValueError(f"expected only parts of type 'text', found {found}")
    if not isinstance(part.get("text"), str):
        raise ValueError(f"expected a part with text under the key 'text', found {part!r:.40}")
    return _checked(part["text"])


def _checked(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        lone = ascii(text[error.start])[1:-1]
        raise ValueError(f"the unpaired surrogate {lone} is not valid Unicode") from None
    return text
