"""Text to token ids: `tokenizers` is the reference, `gigatoken` the fast way to the same ids.

gigatoken (Rust, written for throughput) is young, so its ids are compared with those of
`tokenizers` on documents of every unit of work; where one differs, the unit is encoded again with
the reference, and the manifest says so. Two kinds of text never reach gigatoken: what spells a
special token, which it would make the token, and what holds a character that the two take for
different things (their tables are of different versions of Unicode); those are found beforehand by
encoding every character with both.
"""

from __future__ import annotations

import json
import re
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

# All planes that hold characters, less ASCII and the surrogates.
ASSIGNED = [*range(0x80, 0xD800), *range(0xE000, 0x40000), *range(0xE0000, 0xF0000)]
PROBE = 64

NoLoss = Sequence[tuple[int, int]]


class EncoderDiffers(Exception):
    """gigatoken gave other ids than `tokenizers`."""


@dataclass(frozen=True)
class Encoded:
    """ids of all documents end to end, and how many each has; EOS is not among them."""

    ids: NDArray[np.uint32]
    lengths: NDArray[np.int64]


class Encoder:
    """Encodes with the tokenizer of a tokenizer.json. name: `tokenizers` or `gigatoken`; avoid:
    characters of which `differing_characters` found that gigatoken does not have them right."""

    def __init__(self, path: Path, name: str, avoid: str = "") -> None:
        self.name = name
        self.reference: Tokenizer = load_tokenizer(path)
        self.compared = 0
        self._seen = 0
        self._fast: Any = None
        if name == "gigatoken":
            self._fast = _load_gigatoken(str(path))
            added = self.reference.get_added_tokens_decoder().values()
            special = [re.escape(token.content) for token in added if token.special]
            self._special = re.compile("|".join(special) or "(?!)")
            self._avoid = _class_of([c for c in avoid if c <= "\uffff"])
            self._avoid_beyond = _class_of([c for c in avoid if c > "\uffff"])

    def encode(self, texts: Sequence[str]) -> Encoded:
        """Raises EncoderDiffers where a checked document has other ids."""
        if self._fast is None:
            return _join(
                [
                    e.ids
                    for e in self.reference.encode_batch_fast(list(texts), add_special_tokens=False)
                ]
            )
        spelled = [number for number, text in enumerate(texts) if self._must_avoid(text)]
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

    def _must_avoid(self, text: str) -> bool:
        if self._special.search(text):
            return True
        if text.isascii():
            return False
        if self._avoid.search(text):
            return True
        # Texts with characters of more than 16 bits are rare, and searching them for many is slow.
        return len(text.encode("utf-16-le")) > 2 * len(text) and bool(
            self._avoid_beyond.search(text)
        )

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


def differing_characters(path: Path) -> str:
    """The characters that gigatoken and `tokenizers` take for different things, as a letter and a
    sign, so that words around them are cut differently."""
    probe = _probe_tokenizer(json.loads(path.read_text()))
    return "" if probe is None else _differing_characters(probe)


@lru_cache(4)
def _differing_characters(probe: str) -> str:
    import gigatoken

    reference, fast = Tokenizer.from_str(probe), gigatoken.Tokenizer.from_json(probe)

    def differing(groups: list[list[str]]) -> list[list[str]]:
        probes = ["".join(f"{c}a {c}1 {c}, {c} " for c in group) for group in groups]
        expected = reference.encode_batch_fast(probes, add_special_tokens=False)
        ids = zip(groups, expected, fast.encode_batch_list(probes), strict=True)
        return [group for group, theirs, ours in ids if theirs.ids != ours]

    points = [chr(point) for point in ASSIGNED]
    groups = [points[at : at + PROBE] for at in range(0, len(points), PROBE)]
    suspects = [[c] for group in differing(groups) for c in group]
    return "".join(c for (c,) in differing(suspects))


def _probe_tokenizer(about: dict[str, Any]) -> str | None:
    """The tokenizer with another vocabulary, in which the last byte of a character joins a letter,
    a digit or a sign that follows it in the same word: so the ids tell how words are cut. None
    where it does not work on bytes, and so does not cut by kinds of characters."""
    if '"ByteLevel"' not in json.dumps([about["pre_tokenizer"], about["decoder"]]):
        return None
    letters = _byte_letters()
    pairs = [(letters[last], follows) for last in range(0x80, 0xC0) for follows in "a1,"]
    pieces = [*letters.values(), *(a + b for a, b in pairs)]
    model = {"type": "BPE", "vocab": {piece: n for n, piece in enumerate(pieces)}}
    model["merges"] = [f"{a} {b}" for a, b in pairs]
    return json.dumps({**about, "added_tokens": [], "post_processor": None, "model": model})


def _class_of(characters: Sequence[str]) -> re.Pattern[str]:
    """A pattern of any of the characters, as ranges; of none, one that never matches."""
    points = sorted(map(ord, characters))
    firsts = [p for n, p in enumerate(points) if n == 0 or points[n - 1] != p - 1]
    lasts = [p for n, p in enumerate(points) if p == points[-1] or points[n + 1] != p + 1]
    ranges = "".join(f"{chr(a)}-{chr(b)}" for a, b in zip(firsts, lasts, strict=True))
    return re.compile(f"[{ranges}]" if ranges else "(?!)")


def _byte_letters() -> dict[int, str]:
    """How byte-level tokenizers spell each byte (Radford et al., 2019)."""
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in shown]
    letters = {byte: chr(byte) for byte in shown}
    return letters | {byte: chr(256 + number) for number, byte in enumerate(hidden)}


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
