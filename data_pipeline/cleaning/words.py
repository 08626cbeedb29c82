"""How datatrove's filters split text into words and sentences."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

from conf.errors import InputError

WORD = re.compile(r"\w+(?:['’\-]\w+)*|[^\w\s]+")
SENTENCE_END = re.compile(r"(?<=[.!?])[\"'”’)\]]*\s+|\n+")


@lru_cache
def word_tokenizer(name: str) -> Any:
    """`words`: letters and digits with inner apostrophes and hyphens, or a run of other signs;
    sentences end at . ! ? before white space, and at line breaks. It knows no language and needs
    no model. `spacy`: datatrove's own for English."""
    quiet()
    from datatrove.utils.word_tokenizers import WordTokenizer, load_word_tokenizer

    if name == "spacy":
        try:
            return load_word_tokenizer("eng")
        except ImportError:
            raise InputError(
                "corpus.cleaning.word_tokenizer=spacy needs spaCy: pip install spacy, or use words."
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


def quiet() -> None:
    """Keeps datatrove's log, made for its own executors, off the terminal."""
    from loguru import logger

    logger.disable("datatrove")
