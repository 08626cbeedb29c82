"""Token ids of a conversation in which text that spells a special token stays text.

A chat template writes special tokens between the messages. What a message itself spells, `<s>` in
an answer about HTML, is encoded as any other text, as it was in pretraining: no message can end a
turn that is not its own.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tokenizers import AddedToken, Tokenizer

from conf.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class ChatTokens:
    """Encodes rendered conversations with a copy of a tokenizer.

    The messages are shielded before they are rendered: each special token that they spell is
    replaced by a placeholder. The special tokens that the rendered text then holds are the
    template's own. They are encoded as added tokens of another spelling, and the placeholders as
    what they stand for, in one go: other text has the ids that the tokenizer itself gives.

    Raises InputError where the tokenizer is not one of the library `tokenizers`.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        backend: Tokenizer | None = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise InputError(
                f"the model's tokenizer is a {type(tokenizer).__name__}, which has no "
                "tokenizer.json: expected one of the library tokenizers."
            )
        added = backend.get_added_tokens_decoder()
        special = {n: token for n, token in added.items() if token.special and token.content}
        # No message can hold what is drawn here.
        self._key = f"\ufdd0{secrets.token_hex(8)}"
        self._ids = {token.content: number for number, token in special.items()}
        self._spellings = {number: token.content for number, token in special.items()}
        longest_first = sorted(self._ids, key=len, reverse=True)
        self._spelled = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")
        self._shielded = re.compile(rf"{self._key}:(\d+)\ufdd1")
        self._parts = re.compile(f"{self._shielded.pattern}|{self._spelled.pattern}")
        about = json.loads(backend.to_str())
        about |= {"padding": None, "truncation": None}
        if about["model"]["type"] == "Unigram":  # takes any piece of its vocabulary for text
            for number in special:
                if number < len(about["model"]["vocab"]):
                    about["model"]["vocab"][number][0] = self._mark(number)
        self._tokenizer = Tokenizer.from_str(json.dumps(about))
        self._tokenizer.encode_special_tokens = True
        self._tokenizer.add_tokens(
            [
                AddedToken(
                    self._mark(number),
                    single_word=token.single_word,
                    lstrip=token.lstrip,
                    rstrip=token.rstrip,
                    normalized=False,
                )
                for number, token in special.items()
            ]
        )
        self._of_mark = {
            self._tokenizer.token_to_id(self._mark(number)): number for number in special
        }

    def shield(self, messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Returns the messages, to be rendered, without the special tokens that they spell."""

        def placeholder(found: re.Match[str]) -> str:
            return f"{self._key}:{self._ids[found[0]]}\ufdd1"

        return [
            {**message, "content": self._spelled.sub(placeholder, message["content"])}
            for message in messages
        ]

    def plain(self, rendered: str) -> str:
        """Returns what the rendered text of shielded messages stands for."""
        return self._shielded.sub(lambda found: self._spellings[int(found[1])], rendered)

    def encode(self, rendered: str) -> list[int]:
        """Returns the token ids of rendered text, or of a part of it."""

        def respelled(found: re.Match[str]) -> str:
            return self._spellings[int(found[1])] if found[1] else self._mark(self._ids[found[0]])

        text = self._parts.sub(respelled, rendered)
        ids = self._tokenizer.encode(text, add_special_tokens=False).ids
        return [self._of_mark.get(number, number) for number in ids]

    def encode_text(self, text: str) -> list[int]:
        """Returns the token ids of text outside of any template."""
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def _mark(self, number: int) -> str:
        """Returns how a special token of the template is spelled for the copy of the tokenizer."""
        return f"{self._key}={number}\ufdd1"
