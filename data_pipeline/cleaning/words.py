"""Word tokenizers for datatrove's filters."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

from conf.errors import InputError

WORD = re.compile(r"\w+(?:['’\-]\w+)*|[^\w\s]+")
SENTENCE_END = re.compile(r"(?<=[.!?])[\"'”’)\]]*\s+|\n+")


@lru_cache
def word_tokenizer(name: str) -> Any:
    """Returns a word tokenizer for datatrove by name.

    `words` works for any language and needs no model. A word is a run of letters and digits, which
    may contain apostrophes and hyphens, or a run of other signs. A sentence ends at a line break or
    at `.`, `!` or `?` before white space. `spacy` is datatrove's tokenizer for English.
    """
    silence_datatrove()
    from datatrove.utils.word_tokenizers import WordTokenizer, load_word_tokenizer

    if name == "spacy":
        try:
            return load_word_tokenizer("eng")
        except ImportError:
            raise InputError(
                "corpus.cleaning.word_tokenizer=spacy requires the package spacy. Run pip install "
                "spacy, or use corpus.cleaning.word_tokenizer=words."
            ) from None

    class Words(WordTokenizer):
        def word_tokenize(self, text: str) -> list[str]:
            return WORD.findall(text)

        def sent_tokenize(self, text: str) -> list[str]:
            return [part for part in SENTENCE_END.split(text) if part and not part.isspace()]

        def span_tokenize(self, text: str) -> list[tuple[int, int]]:
            ends = [match.end() for match in SENTENCE_END.finditer(text)] + [len(text)]
            return list(zip([0, *ends[:-1]], ends, strict=True))

    return Words()


def silence_datatrove() -> None:
    """Disables the log messages of datatrove, which are meant for its own executors."""
    from loguru import logger

    logger.disable("datatrove")
