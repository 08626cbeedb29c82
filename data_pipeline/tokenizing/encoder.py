"""Encodes text to token ids with `tokenizers`, the reference, or `gigatoken`, which is faster.

gigatoken is a young library, so its ids are compared with those of `tokenizers` for some documents
of every unit of work. If any differ, the whole unit is encoded again with `tokenizers`, and the
manifest counts such units. gigatoken is loaded without the special tokens, so that text that spells
one is encoded as plain text.
"""

from __future__ import annotations

import json
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

from conf.errors import first_line
from data_pipeline.text.selection import NoLoss
from data_pipeline.tokenizing.tokenizer import load_tokenizer

CHECK_EVERY = 1000
CHECK_FIRST = 4
"""Documents compared per unit: the first CHECK_FIRST, and one in every CHECK_EVERY."""


class EncoderDiffers(Exception):
    """Raised when gigatoken and `tokenizers` encode a text differently."""


@dataclass(frozen=True)
class Encoded:
    """The concatenated ids of all documents, without EOS, and the number of ids per document."""

    ids: NDArray[np.uint32]
    lengths: NDArray[np.int64]


class Encoder:
    """Encoder that uses the tokenizer.json at `path`. `name` is `tokenizers` or `gigatoken`."""

    def __init__(self, path: Path, name: str) -> None:
        self.name = name
        self.reference: Tokenizer = load_tokenizer(path)
        self.compared = 0
        self._seen = 0
        self._fast: Any = _load_gigatoken(str(path)) if name == "gigatoken" else None

    def encode(self, texts: Sequence[str]) -> Encoded:
        """Encodes texts. Raises EncoderDiffers if a checked text differs from the reference."""
        if self._fast is None:
            found = self.reference.encode_batch_fast(list(texts), add_special_tokens=False)
            return _concatenate([encoding.ids for encoding in found])
        layout = self._fast.encode_batch(list(texts)).layout
        offsets = np.asarray(layout.offsets.data).astype(np.int64)
        ids = np.asarray(layout.content.data)[offsets[0] : offsets[-1]]
        encoded = Encoded(ids, np.diff(offsets))
        self._check(texts, encoded)
        return encoded

    def no_loss_tokens(self, text: str, ranges: NoLoss) -> NDArray[np.uint8]:
        """Returns one flag per token of a text: 1 if it overlaps a character range without loss.

        Raises EncoderDiffers if `encode` splits the text into other tokens than the reference,
        because the flags would then belong to the wrong tokens.
        """
        reference = self.reference.encode(text, add_special_tokens=False)
        if self._fast is not None and self.encode([text]).ids.tolist() != reference.ids:
            raise EncoderDiffers
        offsets = np.array(reference.offsets, np.int64).reshape(-1, 2)
        flags = np.zeros(len(offsets), np.uint8)
        for start, end in ranges:
            flags |= ((offsets[:, 0] < end) & (offsets[:, 1] > start)).astype(np.uint8)
        return flags

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


def choose_encoder(requested: str | None, path: Path) -> tuple[str, str]:
    """Returns the name of the encoder to use, and a reason why gigatoken cannot be used, or ''."""
    if requested == "tokenizers":
        return requested, ""
    try:
        _load_gigatoken(str(path))
    except ImportError:
        return "tokenizers", "gigatoken is not installed. Run pip install gigatoken"
    except Exception as error:  # gigatoken's own type, for a kind of tokenizer it does not support
        return "tokenizers", f"gigatoken cannot load this tokenizer ({first_line(error)})"
    return "gigatoken", ""


def describe_encoder(name: str) -> str:
    """Returns the name and version of an encoder."""
    return f"{name} {version(name)}"


@lru_cache(1)
def _load_gigatoken(path: str) -> Any:
    import gigatoken

    content = json.loads(Path(path).read_text())
    content["added_tokens"] = [token for token in content["added_tokens"] if not token["special"]]
    return gigatoken.Tokenizer.from_json(json.dumps(content))


def _concatenate(ids: Sequence[list[int]]) -> Encoded:
    lengths = np.fromiter(map(len, ids), np.int64, len(ids))
    return Encoded(np.fromiter(chain.from_iterable(ids), np.uint32, int(lengths.sum())), lengths)
