"""Makes the cleaning steps that apply datatrove's filters of Gopher, C4 and FineWeb.

Gopher: Rae et al., 2021, section A1.1; C4: Raffel et al., 2020, section 2.2; FineWeb: Penedo et
al., 2024, section 3.5.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from conf.errors import InputError, did_you_mean
from data_pipeline.cleaning.chain import Step, Verdict
from data_pipeline.cleaning.config import CleaningConfig
from data_pipeline.cleaning.words import silence_datatrove, word_tokenizer

SET_HERE = ("self", "language", "exclusion_writer")


def make_gopher_quality(config: CleaningConfig) -> Step:
    """Makes the filter on document and word lengths, symbols, bullet points and stop words."""
    from datatrove.pipeline.filters import GopherQualityFilter

    return _step(GopherQualityFilter, "gopher_quality", config)


def make_gopher_repetition(config: CleaningConfig) -> Step:
    """Makes the filter on repeated lines, paragraphs and n-grams."""
    from datatrove.pipeline.filters import GopherRepetitionFilter

    return _step(GopherRepetitionFilter, "gopher_repetition", config)


def make_c4(config: CleaningConfig) -> Step:
    """Makes the step that drops lines that are not sentences, and documents with few sentences."""
    from datatrove.pipeline.filters import C4QualityFilter

    return _step(C4QualityFilter, "c4", config)


def make_fineweb(config: CleaningConfig) -> Step:
    """Makes the filter on line endings, short lines and repeated characters."""
    from datatrove.pipeline.filters import FineWebQualityFilter

    return _step(FineWebQualityFilter, "fineweb", config)


def _step(kind: Any, name: str, config: CleaningConfig) -> Step:
    from datatrove.data import Document

    silence_datatrove()
    options = _checked(kind, name, getattr(config, name))
    rules = kind(language=word_tokenizer(config.word_tokenizer), **options)

    def step(text: str) -> Verdict:
        document = Document(text=text, id="")
        try:
            result = rules.filter(document)
        except ZeroDivisionError:  # a text without words
            return Verdict(text, "no_words")
        kept, reason = result if isinstance(result, tuple) else (result, name)
        return Verdict(document.text) if kept else Verdict(text, str(reason))

    return step


def _checked(kind: Any, name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    known = [key for key in inspect.signature(kind.__init__).parameters if key not in SET_HERE]
    for key in options:
        if key not in known:
            raise InputError(
                f"corpus.cleaning.{name}.{key} is not an option of the filter {name}"
                f"{did_you_mean(key, known)}."
            )
    # YAML has lists where the filters expect tuples, for example in top_n_grams.
    return {key: _plain(value) for key, value in options.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return tuple(_plain(item) for item in value)
    return value
