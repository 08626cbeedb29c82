"""64-bit hashes of words and word n-grams, for near duplicates and decontamination."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence

import numpy as np
import xxhash

from data_pipeline.splitmix import UInts

MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
CACHED_WORDS = 500_000

# Scripts without spaces between words: Thai, Lao, Burmese, Khmer, Kana, Han.
UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
ASCII_WORD = re.compile(r"[a-z0-9]+")
WORD = re.compile(rf"[{UNSPACED}]|[^\W_{UNSPACED}]+")
ACCENTS = re.compile("[\u0300-\u036f]+")


def words(text: str) -> list[str]:
    """Returns the words of a text, which are its runs of letters and digits.

    They are in lower case and without accents. In scripts without spaces between words, each
    character is a word.
    """
    text = text.lower()
    if text.isascii():
        return ASCII_WORD.findall(text)
    return WORD.findall(ACCENTS.sub("", unicodedata.normalize("NFKD", text)))


class _Hashes(dict[str, int]):
    """A cache of word hashes, which pays off because few words make up most of any text."""

    def __missing__(self, word: str) -> int:
        if len(self) >= CACHED_WORDS:
            self.clear()
        value = self[word] = xxhash.xxh3_64_intdigest(word.encode())
        return value


_hashes = _Hashes()


def word_hashes(found: Sequence[str]) -> UInts:
    """Returns the xxh3 hash of each word, (words,). It is the same in every process."""
    return np.fromiter(map(_hashes.__getitem__, found), np.uint64, len(found))


def n_grams(hashes: UInts, n: int) -> UInts:
    """Returns the polynomial hash of each run of n words, (max(0, words - n + 1),)."""
    return next(n_grams_by_length(hashes, [n]), (n, np.empty(0, np.uint64)))[1]


def n_grams_by_length(hashes: UInts, lengths: Sequence[int]) -> Iterator[tuple[int, UInts]]:
    """Yields each length n, in ascending order, with the hashes of all runs of n words.

    Lengths above that of the text are skipped.

    The hash of n words is computed from that of n - 1 words, so all lengths together cost only as
    much as the longest one.
    """
    total = np.zeros(len(hashes), np.uint64)
    for n in range(1, min(max(lengths, default=0), len(hashes)) + 1):
        total = total[: len(hashes) - n + 1] * MULTIPLIER
        total += hashes[n - 1 :]
        if n in lengths:
            yield n, total
