"""A small gradient-boosted classifier of good and poor text (LightGBM; Ke et al., 2017).

Its features are fractions of kinds of characters, lengths of words and lines, measures of
repetition, and counts of words and word pairs in hash buckets. They are computed from the beginning
of a document. None uses a list of words, so any language and any notion of quality can be learned
from examples.
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

from conf.errors import InputError, first_line

FORMAT = 1
MAX_CHARS = 20_000
BUCKETS = 512
WORD = re.compile(r"\w+")
KINDS = (str.isalpha, str.isdigit, str.isupper, str.isspace)
SIGNS = "{}<>|#=_/\\\"'()[],.;:?!@%&*"
ASCII_KINDS = np.array([[kind(chr(code)) for code in range(128)] for kind in KINDS], np.int64)
ASCII_SIGNS = [ord(sign) for sign in SIGNS]
LINE_ENDS = (".", "!", "?", '"', "”")


class QualityModel:
    """A LightGBM booster, with metadata about its training that is stored in the same file."""

    def __init__(self, booster: Any, metadata: dict[str, Any]) -> None:
        self.booster = booster
        self.metadata = metadata

    @classmethod
    def train(
        cls, texts: Sequence[str], good: Sequence[bool], seed: int, trees: int
    ) -> QualityModel:
        """Trains a model, which depends on the examples and the seed but not on the machine."""
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
        metadata = {"format": FORMAT, "buckets": BUCKETS, "most_chars": MAX_CHARS}
        return cls(booster, metadata)

    def score(self, text: str) -> float:
        """Returns the probability that a text is good."""
        return float(self.scores([text])[0])

    def scores(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """Returns, for each text, the probability that it is good."""
        return np.asarray(self.booster.predict(features(texts), num_threads=1))

    def to_text(self) -> str:
        """Returns the content of the model file: a line of JSON, then LightGBM's text format."""
        return json.dumps(self.metadata) + "\n" + str(self.booster.model_to_string())

    @classmethod
    def load(cls, path: Path) -> QualityModel:
        """Loads a model file. Raises InputError if the file is not one."""
        import lightgbm

        try:
            head, _, text = path.read_text().partition("\n")
            metadata = json.loads(head)
            found = metadata["format"], metadata["buckets"], metadata["most_chars"]
            if found != (FORMAT, BUCKETS, MAX_CHARS):
                raise ValueError(
                    f"its format, buckets and maximum characters are {found}, but this version "
                    f"reads {(FORMAT, BUCKETS, MAX_CHARS)}"
                )
            return cls(lightgbm.Booster(model_str=text), metadata)
        except (ValueError, KeyError, TypeError, OSError, lightgbm.basic.LightGBMError) as error:
            raise InputError(
                f"{path} is not a quality model ({first_line(error)}). Give a file that "
                "`python -m data_pipeline quality` wrote."
            ) from None


def features(texts: Sequence[str]) -> NDArray[np.float32]:
    """Returns the features of texts, (texts, features)."""
    return np.stack([_features(text[:MAX_CHARS]) for text in texts])


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
    """Returns the number of characters of each kind in KINDS, and of each sign in SIGNS."""
    if text.isascii():  # true for most documents, and ten times faster
        counts = np.bincount(np.frombuffer(text.encode(), np.uint8), minlength=128)
        return (ASCII_KINDS @ counts).tolist(), counts[ASCII_SIGNS].tolist()
    found = Counter(text)
    kinds = [sum(n for sign, n in found.items() if kind(sign)) for kind in KINDS]
    return kinds, [found[sign] for sign in SIGNS]


@lru_cache(1 << 18)
def _crc(word: str) -> int:
    return zlib.crc32(word.encode())
