"""Words and runs of words as 64-bit hashes: what near copies and leaked test items are found by."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence

import numpy as np
import xxhash
from numpy.typing import NDArray

UInts = NDArray[np.uint64]
MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
CACHED_WORDS = 500_000

# Scripts without spaces between words: Thai, Lao, Burmese, Khmer, Kana, Han.
UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
ASCII_WORD = re.compile(r"[a-z0-9]+")
WORD = re.compile(rf"[{UNSPACED}]|[^\W_{UNSPACED}]+")
ACCENTS = re.compile("[\u0300-\u036f]+")


def words(text: str) -> list[str]:
    """Lower-cased runs of letters and digits without accents; in scripts that put no space between
    words every character is one."""
    text = text.lower()
    if text.isascii():
        return ASCII_WORD.findall(text)
    return WORD.findall(ACCENTS.sub("", unicodedata.normalize("NFKD", text)))


class _Hashes(dict[str, int]):
    """Hash of each word, kept for the next time: few words are most of any text."""

    def __missing__(self, word: str) -> int:
        if len(self) >= CACHED_WORDS:
            self.clear()
        value = self[word] = xxhash.xxh3_64_intdigest(word.encode())
        return value


_hashes = _Hashes()


def word_hashes(found: Sequence[str]) -> UInts:
    """xxh3 of each word, the same in every process: (words,)."""
    return np.fromiter(map(_hashes.__getitem__, found), np.uint64, len(found))


def n_grams(hashes: UInts, n: int) -> UInts:
    """A hash of each run of n words, (words - n + 1,), empty for fewer: a polynomial in theirs."""
    return next(runs(hashes, [n]), (n, np.empty(0, np.uint64)))[1]


def runs(hashes: UInts, lengths: Sequence[int]) -> Iterator[tuple[int, UInts]]:
    """Each of the lengths, ascending, with its `n_grams`, as long as there are any: a run of n
    words is one of n - 1 and a word, so all cost as much as the longest."""
    total = np.zeros(len(hashes), np.uint64)
    for n in range(1, min(max(lengths, default=0), len(hashes)) + 1):
        total = total[: len(hashes) - n + 1] * MULTIPLIER
        total += hashes[n - 1 :]
        if n in lengths:
            yield n, total


def mix(values: UInts) -> UInts:
    """Spreads the bits of 64-bit hashes, one to one (the finish of splitmix64)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
