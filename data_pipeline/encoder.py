"""Text to token ids: `tokenizers` is the reference, `gigatoken` the fast way to the same ids.

gigatoken (Rust, written for throughput) is young, so its ids are compared with those of
`tokenizers` on documents of every unit of work; where one differs, the unit is encoded again with
the reference, and the manifest says so. Text that spells a special token never reaches gigatoken,
which would make it the token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from data_pipeline.tokenizer import load_tokenizer

CHECK_EVERY = 1000
CHECK_FIRST = 4
"""Of each unit the first documents and one in CHECK_EVERY are compared."""

NoLoss = Sequence[tuple[int, int]]


class EncoderDiffers(Exception):
    """gigatoken gave other ids than `tokenizers`."""


@dataclass(frozen=True)
class Encoded:
    """ids of all documents end to end, and how many each has; EOS is not among them."""

    ids: NDArray[np.uint32]
    lengths: NDArray[np.int64]


class Encoder:
    """Encodes with the tokenizer of a tokenizer.json. name: `tokenizers` or `gigatoken`."""

    def __init__(self, path: Path, name: str) -> None:
        self.name = name
        self.reference: Tokenizer = load_tokenizer(path)
        self.compared = 0
        self._seen = 0
        self._fast: Any = None
        if name == "gigatoken":
            self._fast = _load_gigatoken(str(path))
            added = self.reference.get_added_tokens_decoder().values()
            self._special = [token.content for token in added if token.special]

    def encode(self, texts: Sequence[str]) -> Encoded:
        """Raises EncoderDiffers where a checked document has other ids."""
        if self._fast is None:
            return _join(
                [
                    e.ids
                    for e in self.reference.encode_batch_fast(list(texts), add_special_tokens=False)
                ]
            )
        spelled = [n for n, text in enumerate(texts) if any(s in text for s in self._special)]
        given = list(texts)
        for number in spelled:
            given[number] = ""
        layout = self._fast.encode_batch(given).layout
        offsets = np.asarray(layout.offsets.data).astype(np.int64)
        ids = np.asarray(layout.content.data)[offsets[0] : offsets[-1]]
        encoded = Encoded(ids, np.diff(offsets))
        if spelled:
            encoded = self._with_reference(encoded, texts, spelled)
        self._check(texts, encoded)
        return encoded

    def no_loss_tokens(self, text: str, ranges: NoLoss) -> NDArray[np.uint8]:
        """1 for each token of the text that has a character in one of the ranges."""
        offsets = np.array(
            self.reference.encode(text, add_special_tokens=False).offsets, np.int64
        ).reshape(-1, 2)
        flags = np.zeros(len(offsets), np.uint8)
        for start, end in ranges:
            flags |= ((offsets[:, 0] < end) & (offsets[:, 1] > start)).astype(np.uint8)
        return flags

    def _with_reference(
        self, encoded: Encoded, texts: Sequence[str], numbers: Sequence[int]
    ) -> Encoded:
        """The same, with some documents encoded by the reference."""
        ends = np.cumsum(encoded.lengths)
        parts: list[Any] = []
        lengths = encoded.lengths.copy()
        done = 0
        for number in numbers:
            ids = self.reference.encode(texts[number], add_special_tokens=False).ids
            parts += [encoded.ids[done : ends[number]], np.array(ids, np.uint32)]
            done = ends[number]  # an empty text was given in its place
            lengths[number] = len(ids)
        return Encoded(np.concatenate([*parts, encoded.ids[done:]]), lengths)

    def _check(self, texts: Sequence[str], encoded: Encoded) -> None:
        starts = np.cumsum(encoded.lengths) - encoded.lengths
        for number, text in enumerate(texts):
            if self._seen < CHECK_FIRST or self._seen % CHECK_EVERY == 0:
                self.compared += 1
                expected = self.reference.encode(text, add_special_tokens=False).ids
                start = starts[number]
                found = encoded.ids[start : start + encoded.lengths[number]]
                if found.tolist() != expected:
                    raise EncoderDiffers
            self._seen += 1


def choose_encoder(asked: str | None, path: Path) -> tuple[str, str]:
    """The encoder to use, and why it is not gigatoken where it could be, or ''."""
    if asked == "tokenizers":
        return asked, ""
    try:
        _load_gigatoken(str(path))
    except ImportError:
        return "tokenizers", "gigatoken is not installed (pip install gigatoken)"
    except Exception as error:  # it refuses a kind of tokenizer that it does not know
        return "tokenizers", f"gigatoken cannot load this tokenizer ({_line(error)})"
    return "gigatoken", ""


def describe_encoder(name: str) -> str:
    """Name and version."""
    return f"{name} {version(name)}"


@lru_cache(1)
def _load_gigatoken(path: str) -> Any:
    import gigatoken

    return gigatoken.Tokenizer(Path(path))


def _join(ids: Sequence[list[int]]) -> Encoded:
    lengths = np.fromiter(map(len, ids), np.int64, len(ids))
    return Encoded(np.fromiter(chain.from_iterable(ids), np.uint32, int(lengths.sum())), lengths)


def _line(error: Exception) -> str:
    return str(error).strip().split("\n")[0].rstrip(".")
