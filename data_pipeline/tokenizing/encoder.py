"""Text to token ids: `tokenizers` is the reference, `gigatoken` the fast way to the same ids.

gigatoken (Rust, written for throughput) is young, so its ids are compared with those of
`tokenizers` on documents of every unit of work; where one differs, the unit is encoded again with
the reference, and the manifest says so. gigatoken is not told of the special tokens, so that text
which spells one stays text. What holds a character that the two take for different things (their
tables are of different versions of Unicode) never reaches it; those characters are found beforehand
by encoding all that there are with both.
"""

from __future__ import annotations

import json
import sys
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import version
from itertools import chain, groupby
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from data_pipeline.text.selection import NoLoss
from data_pipeline.tokenizing.tokenizer import load_tokenizer

CHECK_EVERY = 1000
CHECK_FIRST = 4
"""Of each unit the first documents and one in CHECK_EVERY are compared."""

GROUP = 64
"""Characters of one kind that are compared at once."""


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
            self._avoided = np.zeros(sys.maxunicode + 1 if avoid else 0, bool)
            self._avoided[[ord(character) for character in avoid]] = True

    def encode(self, texts: Sequence[str]) -> Encoded:
        """Raises EncoderDiffers where a checked document has other ids."""
        if self._fast is None:
            return _join(
                [
                    e.ids
                    for e in self.reference.encode_batch_fast(list(texts), add_special_tokens=False)
                ]
            )
        avoided = [number for number, text in enumerate(texts) if self._must_avoid(text)]
        given = list(texts)
        for number in avoided:
            given[number] = ""
        layout = self._fast.encode_batch(given).layout
        offsets = np.asarray(layout.offsets.data).astype(np.int64)
        ids = np.asarray(layout.content.data)[offsets[0] : offsets[-1]]
        encoded = Encoded(ids, np.diff(offsets))
        if avoided:
            encoded = self._with_reference(encoded, texts, avoided)
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
        if text.isascii() or not len(self._avoided):
            return False
        return bool(self._avoided[np.frombuffer(text.encode("utf-32-le"), np.uint32)].any())

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
    """Two looks: at groups of characters of one kind, of which most are cut nowhere by either and
    then are all as their last one; and at each character of the other groups by itself."""
    import gigatoken

    reference, fast = Tokenizer.from_str(probe), gigatoken.Tokenizer.from_json(probe)

    def differing(groups: list[list[str]], whole: bool) -> list[list[str]]:
        probes = [_joined(group) if whole else _apart(group) for group in groups]
        expected = reference.encode_batch_fast(probes, add_special_tokens=False)
        found = []
        for group, text, theirs, ours in zip(
            groups, probes, expected, fast.encode_batch_list(probes), strict=True
        ):
            # Each border inside a word joins two bytes into one id.
            cut = whole and len(theirs.ids) > len(text.encode()) - (len(group) - 1)
            if cut or theirs.ids != ours:
                found.append(group)
        return found

    suspects = [[c] for group in differing(_groups_of_a_kind(), True) for c in group]
    return "".join(c for (c,) in differing(suspects, False))


def _joined(group: list[str]) -> str:
    """The characters end to end; what follows tells what the last one is taken for."""
    return f"{''.join(group)}a{group[-1]}1{group[-1]},"


def _apart(group: list[str]) -> str:
    return "".join(f"{c}a {c}1 {c}, {c} " for c in group)


def _groups_of_a_kind() -> list[list[str]]:
    """All characters but ASCII's, in groups of neighbours that Python takes for the same kind."""
    points = [*range(0x80, 0xD800), *range(0xE000, 0x40000), *range(0xE0000, 0xF0000)]
    runs = groupby(map(chr, points), key=unicodedata.category)
    listed = (list(run) for _, run in runs)
    return [run[at : at + GROUP] for run in listed for at in range(0, len(run), GROUP)]


def _probe_tokenizer(about: dict[str, Any]) -> str | None:
    """The tokenizer with another vocabulary, in which the last byte of a character joins what
    follows it in the same word, a character or a letter, digit or sign: so the ids tell how words
    are cut. None where it does not work on bytes, and so does not cut by kinds of characters."""
    if '"ByteLevel"' not in json.dumps([about["pre_tokenizer"], about["decoder"]]):
        return None
    letters = _byte_letters()
    follows = [*"a1,", *(letters[first] for first in range(0xC2, 0xF5))]
    pairs = [(letters[last], after) for last in range(0x80, 0xC0) for after in follows]
    pieces = [*letters.values(), *(a + b for a, b in pairs)]
    model = {"type": "BPE", "vocab": {piece: n for n, piece in enumerate(pieces)}}
    model["merges"] = [f"{a} {b}" for a, b in pairs]
    return json.dumps({**about, "added_tokens": [], "post_processor": None, "model": model})


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

    about = json.loads(Path(path).read_text())
    about["added_tokens"] = [token for token in about["added_tokens"] if not token["special"]]
    return gigatoken.Tokenizer.from_json(json.dumps(about))


def _join(ids: Sequence[list[int]]) -> Encoded:
    lengths = np.fromiter(map(len, ids), np.int64, len(ids))
    return Encoded(np.fromiter(chain.from_iterable(ids), np.uint32, int(lengths.sum())), lengths)


def _line(error: Exception) -> str:
    return str(error).strip().split("\n")[0].rstrip(".")
