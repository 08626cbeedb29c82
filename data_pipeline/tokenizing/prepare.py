"""The phase before encoding: resolves near duplicates, makes the tokenizer, chooses the encoder."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from conf.errors import InputError
from data_pipeline.dedup import digests, matching
from data_pipeline.store.manifest import Manifest, tokenizer_fingerprint
from data_pipeline.text.corpus import CorpusConfig, TokenizeConfig, TokenizerConfig
from data_pipeline.text.selection import TRAIN
from data_pipeline.text.units import Unit
from data_pipeline.tokenizing.encoder import choose_encoder
from data_pipeline.tokenizing.encoding import describe_malformed, rejected_lines, select_documents
from data_pipeline.tokenizing.tokenizer import (
    document_tokenizer,
    load_tokenizer,
    special_ids,
    token_bytes,
    train_tokenizer,
    vocab_size_of,
)

SAMPLED_UNITS = 256
"""Maximum number of units whose text a tokenizer is trained on."""


def prepare(
    config: TokenizeConfig, units: list[Unit], work: Path, base: Manifest | None = None
) -> dict[str, Any]:
    """Writes tokenizer.json and token_bytes.npy, and returns the settings of the encode phase.

    If documents are added to the corpus `base`, nothing is written, because its tokenizer is used.
    """
    if digests.is_enabled(config.corpus) and not config.corpus.cleaning.dedup.paragraphs:
        plan = matching.load_plan(units, work, config.corpus.cleaning.dedup)
        matching.settle_ranges(plan, work)
    folder = work / "corpus"
    folder.mkdir(exist_ok=True)
    if base is not None:
        encoder, note = choose_encoder(config.encoder, base.tokenizer_path)
        return {
            "tokenizer": base.tokenizer,
            "dtype": base.dtype,
            "encoder": encoder,
            "encoder_note": note,
            "not_added": [],
        }
    path = folder / "tokenizer.json"
    added = make_tokenizer(config.tokenizer, config.corpus, units, work, path)
    tokenizer = load_tokenizer(path)
    vocab_size = vocab_size_of(tokenizer)
    ids = special_ids(tokenizer, config.tokenizer)
    np.save(folder / "token_bytes.npy", token_bytes(tokenizer))
    encoder, note = choose_encoder(config.encoder, path)
    return {
        "tokenizer": {
            "file": path.name,
            "sha256": tokenizer_fingerprint(path),
            "vocab_size": vocab_size,
            **ids,
        },
        "dtype": "uint16" if vocab_size < 65500 else "int32",
        "encoder": encoder,
        "encoder_note": note,
        "not_added": added,
    }


def make_tokenizer(
    config: TokenizerConfig, corpus: CorpusConfig, units: list[Unit], work: Path, out: Path
) -> list[str]:
    """Writes tokenizer.json, which is a copy of `config.path` or is trained on the training split.

    A trained tokenizer sees each source in proportion to the size of its text. A copy is changed so
    that it adds no tokens to a text. Returns the tokens that the original adds.
    """
    if config.path:
        special = [*config.special_tokens(), *config.extra_tokens]
        content, added = document_tokenizer(Path(config.path), special)
        out.write_text(content)
        return added
    before = os.environ.get("TOKENIZERS_PARALLELISM", "true")
    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    try:
        tokenizer = train_tokenizer(_sample(config.train_bytes, corpus, units, work), config)
        out.write_text(tokenizer.to_str(pretty=True))  # unlike Tokenizer.save, raises OSError
    finally:
        os.environ["TOKENIZERS_PARALLELISM"] = before
    return []


def _sample(max_bytes: int, corpus: CorpusConfig, units: list[Unit], work: Path) -> Iterator[str]:
    """Yields about `max_bytes` of training documents from units spread evenly over the corpus."""
    count = min(len(units), SAMPLED_UNITS)
    chosen = [units[number * len(units) // count] for number in range(count)]
    found, malformed = False, ""
    for unit in chosen:
        budget = max(1, max_bytes // len(chosen))
        selection, documents = select_documents(unit, corpus, work)
        for split, document in documents:
            if budget <= 0:
                break
            if split == TRAIN:
                found = True
                budget -= len(document.text)
                yield document.text
        if selection.malformed and not malformed:
            rows = rejected_lines([{"malformed": selection.malformed, "lines": 0}], [unit])
            first = json.loads(rows[unit.source][0])
            malformed = f" The first malformed row is {describe_malformed(first)}."
    if not found:
        raise InputError(
            f"corpus.name={corpus.name}: no document is left to train a tokenizer on.{malformed} "
            "Loosen the rules and cleaning steps, or lower corpus.held_out_fraction."
        )
