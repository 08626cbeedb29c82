"""Compares two texts word by word, and shortens what they share, to show them side by side."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher

MAX_WORDS = 2000
"""Maximum number of words of each text that are compared."""
CONTEXT = 12
"""Number of words shown before and after each difference."""
MAX_ROWS = 6
ROW_WORDS = 100
"""Maximum number of rows that are shown of a pair of texts. A row of ROW_WORDS takes no more
differences."""
MAX_CHANGED = 60
"""Maximum number of consecutive different words that are shown of a text."""
WORD = re.compile(r"\s*\S+")


@dataclass(frozen=True)
class Span:
    """A part of a text, which differs from the other text or not."""

    text: str
    is_different: bool = False


@dataclass(frozen=True)
class DifferenceRow:
    """Corresponding parts of two texts, after `same` words that both texts share."""

    same: int
    left: list[Span]
    right: list[Span]


@dataclass(frozen=True)
class Differences:
    """Two texts side by side.

    Attributes:
        rows: the parts that differ, with some words before and after them.
        same: number of shared words after the last row.
        more: number of further rows that are not shown.
        not_compared: number of words of the longer text after those that were compared.
    """

    rows: list[DifferenceRow]
    same: int
    more: int
    not_compared: int


def compare(left: str, right: str) -> Differences:
    """Returns the differences of two texts. Texts without a difference have one row."""
    words = WORD.findall(left), WORD.findall(right)
    rest = max(map(len, words)) - MAX_WORDS
    a, b = (found[:MAX_WORDS] for found in words)
    keys, other_keys = ([word.strip() for word in found] for found in (a, b))
    matcher = SequenceMatcher(None, keys, other_keys, autojunk=False)
    groups = list(_groups(matcher.get_opcodes()))
    rows, shown = [], 0
    for number, group in enumerate(groups):
        first, last = group[0], group[-1]
        end = groups[number + 1][0][1] if number + 1 < len(groups) else len(a)
        start = max(first[1] - CONTEXT, shown)
        before, after = first[1] - start, min(CONTEXT, end - last[2])
        left_spans = _spans(a, [opcode[1:3] for opcode in group], before, after)
        right_spans = _spans(b, [opcode[3:5] for opcode in group], before, after)
        rows.append(DifferenceRow(start - shown, left_spans, right_spans))
        shown = last[2] + after
    if not rows:
        text = [Span("".join(a[: 4 * CONTEXT]))]
        rows, shown = [DifferenceRow(0, text, text)], min(4 * CONTEXT, len(a))
    cut = rows[MAX_ROWS:]
    same = 0 if cut else len(a) - shown
    return Differences(rows[:MAX_ROWS], same, len(cut), max(0, rest))


def _spans(
    words: list[str], different: list[tuple[int, int]], before: int, after: int
) -> list[Span]:
    """Returns ranges of words that differ, with the words between, before and after them."""
    spans, at = [], different[0][0] - before
    for start, end in different:
        marked = _cut(words[start:end])
        # The white space before a word is not marked.
        space = marked[: len(marked) - len(marked.lstrip())]
        spans.append(Span("".join(words[at:start]) + space))
        spans.append(Span(marked.lstrip(), is_different=True))
        at = end
    spans.append(Span("".join(words[at : at + after])))
    spans[0] = Span(spans[0].text.lstrip(), spans[0].is_different)
    return [span for span in spans if span.text]


Opcode = tuple[str, int, int, int, int]


def _groups(opcodes: Sequence[Opcode]) -> Iterator[list[Opcode]]:
    """Yields differences whose contexts meet, as far as they fit into one row."""
    group: list[Opcode] = []
    for opcode in opcodes:
        if opcode[0] == "equal":
            continue
        is_far = group and opcode[1] - group[-1][2] > 2 * CONTEXT
        if is_far or (group and opcode[2] - group[0][1] > ROW_WORDS):
            yield group
            group = []
        group.append(opcode)
    if group:
        yield group


def _cut(words: list[str]) -> str:
    if len(words) <= MAX_CHANGED:
        return "".join(words)
    half = MAX_CHANGED // 2
    return "".join([*words[:half], f" … {len(words) - 2 * half:,} words … ", *words[-half:]])
