"""A small gradient-boosted classifier of good and poor text (LightGBM; Ke et al., 2017).

Features: shares of kinds of characters, lengths of words and lines, repetition, and how often
words and pairs of words fall into each of a number of buckets by their hash. All come from the
first characters of a document, and none from a list of words, so any language and any notion of
good can be learnt from examples.
"""

from __future__ import annotations

import json
import re
import zlib
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from conf.errors import InputError

FORMAT = 1
MOST_CHARS = 20_000
BUCKETS = 512
WORD = re.compile(r"\w+")
KINDS = (str.isalpha, str.isdigit, str.isupper, str.isspace)
SIGNS = "{}<>|#=_/\\\"'()[],.;:?!@%&*"
ASCII_KINDS = np.array([[kind(chr(code)) for code in range(128)] for kind in KINDS], np.int64)
ASCII_SIGNS = [ord(sign) for sign in SIGNS]
LINE_ENDS = (".", "!", "?", '"', "”")


class QualityModel:
    """booster: LightGBM's; about: how it was trained, kept in the file."""

    def __init__(self, booster: Any, about: dict[str, Any]) -> None:
        self.booster = booster
        self.about = about

    @classmethod
    def train(
        cls, texts: Sequence[str], good: Sequence[bool], seed: int, trees: int
    ) -> QualityModel:
        """The same examples and seed give the same model, on any number of cores."""
        import lightgbm

        settings = {
            "objective": "binary",
            "learning_rate": 0.1,
            "num_leaves": 31,
            "min_data_in_leaf": max(2, min(20, len(texts) // 20)),
            "feature_fraction": 0.5,
            "seed": seed,
            "deterministic": True,
            "force_row_wise": True,
            "num_threads": 1,
            "verbosity": -1,
        }
        data = lightgbm.Dataset(features(texts), np.array(good, np.float32))
        booster = lightgbm.train(settings, data, num_boost_round=trees)
        about = {"format": FORMAT, "buckets": BUCKETS, "most_chars": MOST_CHARS}
        return cls(booster, about)

    def score(self, text: str) -> float:
        """Probability that a text is good."""
        return float(self.scores([text])[0])

    def scores(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """The same of several texts."""
        return np.asarray(self.booster.predict(features(texts), num_threads=1))

    def to_text(self) -> str:
        """Returns the content of its file: a line of JSON, then LightGBM's text."""
        return json.dumps(self.about) + "\n" + str(self.booster.model_to_string())

    @classmethod
    def load(cls, path: Path) -> QualityModel:
        """Raises InputError for a file that holds something else."""
        import lightgbm

        try:
            head, _, text = path.read_text().partition("\n")
            about = json.loads(head)
            found = about["format"], about["buckets"], about["most_chars"]
            if found != (FORMAT, BUCKETS, MOST_CHARS):
                raise ValueError(f"format {found}, expected {(FORMAT, BUCKETS, MOST_CHARS)}")
            return cls(lightgbm.Booster(model_str=text), about)
        except (ValueError, KeyError, TypeError, OSError, lightgbm.basic.LightGBMError) as error:
            raise InputError(
                f"{path} is no quality model ({str(error).splitlines()[0] if str(error) else ''}): "
                "train one with python -m data_pipeline quality."
            ) from None


def features(texts: Sequence[str]) -> NDArray[np.float32]:
    """(texts, features)."""
    return np.stack([_features(text[:MOST_CHARS]) for text in texts])


def _features(text: str) -> NDArray[np.float32]:
    words = WORD.findall(text.lower())
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    size, count, rows = max(1, len(text)), max(1, len(words)), max(1, len(lines))
    kinds, signs = _characters(text)
    shape = [
        np.log1p(len(text)),
        *(count / size for count in kinds),
        sum(map(len, words)) / count,
        len(set(words)) / count,
        len(words) / rows,
        len(set(lines)) / rows,
        len([1 for line in lines if line.endswith(LINE_ENDS)]) / rows,
        len([1 for line in lines if len(line) < 30]) / rows,
        len([1 for line in lines if line.startswith(("-", "*", "•"))]) / rows,
        *(count / size for count in signs),
    ]
    buckets = np.zeros(BUCKETS, np.float32)
    hashes = np.fromiter(map(_crc, words), np.uint64, len(words))
    pairs = hashes[:-1] * np.uint64(31) + hashes[1:]
    for part in (hashes, pairs):
        buckets += np.bincount((part % np.uint64(BUCKETS)).astype(np.int64), minlength=BUCKETS)
    return np.concatenate([np.array(shape, np.float32), np.log1p(buckets / count * 1000)])


def _characters(text: str) -> tuple[Sequence[int], Sequence[int]]:
    """How many characters are of each of KINDS, and are each of SIGNS."""
    if text.isascii():  # most documents, and ten times as fast
        counts = np.bincount(np.frombuffer(text.encode(), np.uint8), minlength=128)
        return (ASCII_KINDS @ counts).tolist(), counts[ASCII_SIGNS].tolist()
    found = Counter(text)
    kinds = [sum(n for sign, n in found.items() if kind(sign)) for kind in KINDS]
    return kinds, [found[sign] for sign in SIGNS]


@lru_cache(1 << 18)
def _crc(word: str) -> int:
    return zlib.crc32(word.encode())
