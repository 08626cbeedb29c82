"""Token ids of a conversation, in which messages cannot inject special tokens.

A chat template writes special tokens between the messages. If a message spells out a special token,
such as `<s>` in an answer about HTML, it is encoded as plain text, as in pretraining. Therefore, no
message can end its own turn early or begin the turn of another role.
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

    1. `shield` replaces each special token spelled out in a message with a placeholder.
    2. The caller renders the messages. All special tokens in the result are the template's.
    3. `encode` respells the template's special tokens as added tokens with unique names, restores
       the text of the placeholders, and tokenizes the result in one call. All other text gets the
       ids that the original tokenizer gives.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Copies the tokenizer.

        Raises InputError if the tokenizer is not backed by the library `tokenizers`.
        """
        backend: Tokenizer | None = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise InputError(
                f"the model's tokenizer, a {type(tokenizer).__name__}, has no tokenizer.json. Use "
                "a model whose tokenizer is of the library tokenizers."
            )
        added = backend.get_added_tokens_decoder()
        special = {n: token for n, token in added.items() if token.special and token.content}
        # A random key, which no message can contain.
        self._key = f"\ufdd0{secrets.token_hex(8)}"
        self._ids = {token.content: number for number, token in special.items()}
        self._spellings = {number: token.content for number, token in special.items()}
        longest_first = sorted(self._ids, key=len, reverse=True)
        self._special = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")
        self._placeholder = re.compile(rf"{self._key}:(\d+)\ufdd1")
        self._either = re.compile(f"{self._placeholder.pattern}|{self._special.pattern}")
        state = json.loads(backend.to_str())
        state |= {"padding": None, "truncation": None}
        if state["model"]["type"] == "Unigram":  # Unigram also matches special tokens in text
            for number in special:
                if number < len(state["model"]["vocab"]):
                    state["model"]["vocab"][number][0] = self._unique_name(number)
        self._tokenizer = Tokenizer.from_str(json.dumps(state))
        self._tokenizer.encode_special_tokens = True
        self._tokenizer.add_tokens(
            [
                AddedToken(
                    self._unique_name(number),
                    single_word=token.single_word,
                    lstrip=token.lstrip,
                    rstrip=token.rstrip,
                    normalized=False,
                )
                for number, token in special.items()
            ]
        )
        self._original_ids = {
            self._tokenizer.token_to_id(self._unique_name(number)): number for number in special
        }

    def shield(self, messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Returns the messages with placeholders for the special tokens spelled out in them."""

        def placeholder(found: re.Match[str]) -> str:
            return f"{self._key}:{self._ids[found[0]]}\ufdd1"

        return [
            {**message, "content": self._special.sub(placeholder, message["content"])}
            for message in messages
        ]

    def plain(self, rendered: str) -> str:
        """Returns rendered text with the placeholders replaced by the original text."""
        return self._placeholder.sub(lambda found: self._spellings[int(found[1])], rendered)

    def encode(self, rendered: str) -> list[int]:
        """Returns the token ids of rendered text, or of a part of it."""

        def respell(found: re.Match[str]) -> str:
            if found[1]:
                return self._spellings[int(found[1])]
            return self._unique_name(self._ids[found[0]])

        text = self._either.sub(respell, rendered)
        ids = self._tokenizer.encode(text, add_special_tokens=False).ids
        return [self._original_ids.get(number, number) for number in ids]

    def encode_text(self, text: str) -> list[int]:
        """Returns the token ids of text that no template has been applied to."""
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def _unique_name(self, number: int) -> str:
        """Returns the unique name that a template's special token has in the copied tokenizer."""
        return f"{self._key}={number}\ufdd1"
