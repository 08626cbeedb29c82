"""What a choice of the group `conf/chat_template/` holds."""

from __future__ import annotations

from dataclasses import dataclass, field

from omegaconf import MISSING


@dataclass
class ChatTemplate:
    """A chat format as two Jinja templates that render the same text.

    template: for inference, exact to the character as published; goes into the exported folder.
    special_tokens: tokens that the template writes; those that a tokenizer lacks are added to it.
    end_token: the one of them that ends an answer, null for the tokenizer's own eos_token.
    training_template: the same with `{% generation %}` around what the assistant says, its end
        token included, so that the loss can be taken there only.
    """

    name: str = MISSING
    template: str = MISSING
    training_template: str = MISSING
    special_tokens: list[str] = field(default_factory=list)
    end_token: str | None = None
