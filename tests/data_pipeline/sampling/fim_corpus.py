"""A corpus whose tokenizer has special tokens for fill in the middle."""

from __future__ import annotations

from pathlib import Path

from data_pipeline.sampling.fim import KNOWN_TOKENS
from data_pipeline.sampling.order import SampleOrder
from data_pipeline.sampling.stage import Stage
from data_pipeline.store.manifest import Manifest
from tests.corpora import VOCAB_SIZE, byte_tokenizer, make_corpus

NAMES = KNOWN_TOKENS[0]
PREFIX, SUFFIX, MIDDLE = range(VOCAB_SIZE, VOCAB_SIZE + 3)
EOS = 2


def make_fim_corpus(folder: Path, tokens: int = 40_000) -> Manifest:
    """Makes the corpus of all tests, with three more special tokens."""
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens(list(NAMES))
    return make_corpus(folder, tokens, 3_000, tokenizer)


def order_of(manifest: Manifest, fim: dict, samples: int = 400, seed: int = 3) -> SampleOrder:
    """Returns the order of one stage with samples of 128 tokens, most of them of `code`."""
    stage = Stage(128, samples, {"code": 3.0, "prose": 1.0}, fim=fim)
    return SampleOrder(manifest.source_tokens("train"), [stage], seed)


def parts_of(tokens: list[int]) -> tuple[str, list[int], list[int], list[int]]:
    """Returns the format, prefix, middle and suffix of a rearranged document, whatever is known."""
    suffix, middle = tokens.index(SUFFIX), tokens.index(MIDDLE)
    assert tokens[0] == PREFIX
    if suffix == 1:  # as for an empty prefix in the other format, whose suffix is the same
        return "spm", [], tokens[middle + 1 :], tokens[2:middle]
    return "psm", tokens[1:suffix], tokens[middle + 1 :], tokens[suffix + 1 : middle]
