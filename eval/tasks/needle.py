"""Needle tasks of `build_tasks`: a fact is planted in held-out text, and its words are asked for.

There is one task per length, `<corpus>_needle_<tokens>`, with a YAML file and its jsonl file. Each
sample is held-out text with facts on lines of their own, such as "The secret word of river is
window.", and ends with the beginning of one of these facts, "The secret word of river is". The fact
that is asked for is at one of the depths. The others, with other names and words, are anywhere, so
that a model has to find the right line, not any line that does not belong to the text.

A base model answers without instructions, because the question is the beginning of a sentence that
it has read. Two metrics come from one forward pass: `acc` asks which of four words is the most
likely one, and `exact_match` is 1 if greedy decoding produces the word.

A sample has exactly as many tokens as the name of its task states, including the answer. The words
are single tokens of the tokenizer that do not occur in the text around them, first of all words of
other held-out documents; they are numbers if the tokenizer has too few words.
"""

from __future__ import annotations

import random
import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from conf.errors import InputError
from data_pipeline.store.manifest import Manifest
from data_pipeline.tokenizing.documents import read_documents
from data_pipeline.tokenizing.tokenizer import load_tokenizer
from eval.tasks.forms import multiple_choice

CHOICES = 4
MIN_WORDS = 200
"""Words that a tokenizer must have as single tokens, or else numbers are used."""
MAX_NUMBERS = 4000
"""Numbers from which the facts are drawn if a tokenizer has too few words."""
ATTEMPTS = 60
"""Cuts of a text that are tried until a sample has the requested number of tokens."""
SLACK_TOKENS = 200
"""Tokens of text that are taken in addition, of which the beginning is then cut off."""


@dataclass
class NeedleConfig:
    """Configuration of needle tasks.

    lengths: tokens per sample, one task for each, such as [4096, 16384, 65536]; empty for no
        needle tasks.
    depths: percentages of the text that precede the fact.
    samples: samples per length and depth.
    facts: facts per sample, 1 or more; those that are not asked for have other names and words.
    fact: the sentence, with {name} and {word}.
    sources: sources whose held-out text surrounds the facts; empty for all.
    tokenizer: a tokenizer.json whose tokens are counted; null for that of the corpus.
    """

    lengths: list[int] = field(default_factory=list)
    depths: list[float] = field(default_factory=lambda: [0.0, 25.0, 50.0, 75.0, 100.0])
    samples: int = 20
    facts: int = CHOICES
    fact: str = "The secret word of {name} is {word}."
    sources: list[str] = field(default_factory=list)
    tokenizer: str | None = None

    def __post_init__(self) -> None:
        for key in ("samples", "facts"):
            if getattr(self, key) < 1:
                raise InputError(f"needle.{key}={getattr(self, key)}: expected 1 or more.")
        for key in ("lengths", "depths"):
            values = getattr(self, key)
            if len(set(values)) < len(values):
                raise InputError(f"needle.{key}={values}: a value is repeated. Remove it.")
        if not self.depths or not all(0 <= depth <= 100 for depth in self.depths):
            raise InputError(
                f"needle.depths={self.depths}: expected percentages from 0 to 100, such as "
                "[0,50,100]."
            )
        if not all(length >= 1 for length in self.lengths):
            raise InputError(f"needle.lengths={self.lengths}: expected 1 or more tokens.")
        if self.fact.count("{name}") != 1 or self.fact.count("{word}") != 1:
            raise InputError(
                f"needle.fact={self.fact}: expected one {{name}} and one {{word}}. Write it like "
                "'The secret word of {name} is {word}.'"
            )
        if self.fact.index("{name}") > self.fact.index("{word}"):
            raise InputError(
                f"needle.fact={self.fact}: expected {{name}} before {{word}}, because the question "
                "ends where the word begins."
            )


@dataclass(frozen=True)
class Fact:
    """A fact: the question, the answer after it, and the whole sentence."""

    question: str
    answer: str
    sentence: str


def needle_tasks(
    manifest: Manifest, config: NeedleConfig, seed: int
) -> Iterator[tuple[str, dict[str, Any], list[dict[str, Any]]]]:
    """Yields the name of each task, the content of its YAML file, and its rows.

    Raises:
        InputError: the corpus has too little held-out text, or a length is too short for the facts.
    """
    path = Path(config.tokenizer) if config.tokenizer else manifest.tokenizer_path
    tokenizer = load_tokenizer(path)
    haystack = Haystack(manifest, config.sources, tokenizer)
    words = answer_words(tokenizer, config.fact)
    for length in config.lengths:
        rows = []
        for number in range(config.samples):
            for depth in config.depths:
                draw = random.Random(f"{seed} needle {length} {depth} {number}")
                rows.append(sample(haystack, words, config, length, depth, draw))
        # Depths alternate, so that a limit on the number of samples leaves some of each depth.
        content = multiple_choice("acc", "exact_match", needle=cells(manifest, config, length))
        yield f"needle_{length}", content, rows


def cells(manifest: Manifest, config: NeedleConfig, length: int) -> dict[str, Any]:
    """Returns what a result file states of a needle task, for the heat map of the report.

    Sample i is at `depths[i % len(depths)]`.
    """
    return {
        "name": manifest.name,
        "length": length,
        "depths": [float(depth) for depth in config.depths],
        "facts": config.facts,
    }


class Haystack:
    """The held-out text of sources.

    Attributes:
        texts: Documents.
        tokens: Number of tokens of each document.
        total_tokens: Number of tokens of all documents.
        words: Different words of the text, which are drawn before other tokens of the tokenizer.
    """

    def __init__(self, manifest: Manifest, sources: list[str], tokenizer: Tokenizer) -> None:
        known = sorted(manifest.source_tokens("held_out"))
        for source in sources:
            if source not in known:
                raise InputError(
                    f"needle.sources={sources}: the corpus has no held-out text of a source "
                    f"'{source}'. It has that of {', '.join(known)}."
                )
        self.tokenizer = tokenizer
        self.texts = [
            text
            for source in sources or known
            for document in read_documents(manifest, "held_out", source)
            if (text := document.text.strip())
        ]
        encoded = tokenizer.encode_batch(self.texts, add_special_tokens=False)
        self.tokens = [len(encoding.ids) for encoding in encoded]
        self.total_tokens = sum(self.tokens)
        self.words = {word for text in self.texts for word in re.findall(r"\w+", text)}

    def take(self, tokens: int, draw: random.Random) -> str:
        """Returns text of at least so many tokens, from a random document on."""
        number, taken, parts = draw.randrange(len(self.texts)), 0, []
        while taken < tokens:
            parts.append(self.texts[number])
            taken += self.tokens[number]
            number = (number + 1) % len(self.texts)
        return "\n\n".join(parts)


def sample(
    haystack: Haystack,
    words: list[str],
    config: NeedleConfig,
    length: int,
    depth: float,
    draw: random.Random,
) -> dict[str, Any]:
    """Returns a row with context, choices and label, of exactly `length` tokens with its answer."""
    if haystack.total_tokens < length:
        raise InputError(
            f"needle.lengths: {length:,} tokens per sample, but the held-out text has only "
            f"{haystack.total_tokens:,}. Remove this length, or tokenize the corpus again with a "
            "larger corpus.held_out_fraction."
        )
    for _ in range(ATTEMPTS):
        text = haystack.take(length + SLACK_TOKENS, draw)
        shuffled = sorted(draw.sample(words, len(words)), key=lambda w: w not in haystack.words)
        drawn = absent_words(shuffled, text, 2 * config.facts + CHOICES)
        facts = [
            fact_of(config.fact, name, word)
            for name, word in zip(
                drawn[: config.facts], drawn[config.facts : 2 * config.facts], strict=True
            )
        ]
        places = [depth / 100, *(draw.random() for _ in facts[1:])]
        planted = list(zip(places, (fact.sentence for fact in facts), strict=True))
        asked = facts[0]
        found = fitted(haystack.tokenizer, text, planted, asked, length)
        if found is None:
            continue
        context, position = found
        # The other choices are the words of other facts and, if these are few, further words.
        others = [fact.answer for fact in facts[1:]]
        others += [fact_of(config.fact, "", word).answer for word in drawn[2 * config.facts :]]
        choices = others[: CHOICES - 1]
        label = draw.randrange(CHOICES)
        choices.insert(label, asked.answer)
        return {
            "context": context,
            "choices": choices,
            "label": label,
            "depth": depth,
            "tokens_before_fact": position,
        }
    raise InputError(
        f"needle.lengths: no sample of exactly {length:,} tokens was found with "
        f"needle.facts={config.facts}. Use longer samples, or fewer facts."
    )


def fitted(
    tokenizer: Tokenizer,
    text: str,
    planted: list[tuple[float, str]],
    asked: Fact,
    length: int,
) -> tuple[str, int] | None:
    """Returns the end of a text with planted facts and the question, in `length` tokens.

    The beginning of the text is cut off. The number of tokens is measured on the whole sample,
    because tokens may span the places where text was inserted.

    Args:
        tokenizer: The tokenizer that counts.
        text: Held-out text of more tokens.
        planted: Place of each fact, as a fraction of the text before it, and its sentence.
        asked: The fact that is asked for.
        length: Number of tokens including the answer.

    Returns:
        The context, and the number of tokens before the fact that is asked for, or None if no cut
        has the requested number of tokens.
    """
    starts = [start for start, _ in tokenizer.encode(text, add_special_tokens=False).offsets]
    inserted = "\n".join([*(sentence for _, sentence in planted), asked.question + asked.answer])
    cut = len(starts) + len(tokenizer.encode(inserted, add_special_tokens=False).ids) - length
    if not 0 <= cut < len(starts):
        return None
    # Only the beginning of the sample changes from now on, and with it a few tokens.
    chars = len(text) - starts[cut]
    placed = [(boundary(text, len(text) - round((1 - p) * chars)), fact) for p, fact in planted]
    tried: set[int] = set()
    for _ in range(ATTEMPTS):
        if not 0 <= cut < len(starts):
            return None
        position = starts[cut]
        while position in tried:  # counts that alternate around the length
            position += 1
        tried.add(position)
        context = f"{with_facts(text, position, placed)}\n{asked.question}"
        whole = tokenizer.encode(context + asked.answer, add_special_tokens=False)
        if len(whole.ids) == length:
            fact = context.index(asked.sentence)
            return context, sum(end <= fact for _, end in whole.offsets)
        cut = bisect_right(starts, position) - 1 + len(whole.ids) - length
    return None


def with_facts(text: str, start: int, placed: list[tuple[int, str]]) -> str:
    """Returns the text from `start` on with each sentence on a line of its own.

    placed: Position in the text and sentence of each fact; those before `start` are put there.
    """
    parts: list[str] = []
    # The fact that is asked for is the first of the list, and stays in front of those that have
    # the same position.
    for position, sentence in sorted(placed, key=lambda item: item[0]):
        position = max(position, start)
        before = text[start:position]
        parts.append(f"{before}\n{sentence}\n" if before or parts else f"{sentence}\n")
        start = position
    return "".join([*parts, text[start:]])


def boundary(text: str, position: int) -> int:
    """Returns the position of the white space before a position, or 0; the end stays the end."""
    if position >= len(text):
        return len(text)
    spaces = re.compile(r"\s")
    while position > 0 and not spaces.match(text, position):
        position -= 1
    return position


def fact_of(template: str, name: str, word: str) -> Fact:
    """Returns a fact; white space before the word belongs to the answer."""
    before, after = template.replace("{name}", name).split("{word}")
    question = before.rstrip()
    answer = before[len(question) :] + word
    return Fact(question, answer, question + answer + after)


def absent_words(words: list[str], text: str, count: int) -> list[str]:
    """Returns the first words that do not occur in the text.

    Raises:
        InputError: there are too few of them.
    """
    found: list[str] = []
    for word in words:
        if word not in text:
            found.append(word)
            if len(found) == count:
                return found
    raise InputError(
        f"needle.facts: of the {len(words):,} words of the tokenizer, only {len(found)} do not "
        f"occur in a text, but {count} are needed. Use fewer facts or shorter samples."
    )


def answer_words(tokenizer: Tokenizer, template: str) -> list[str]:
    """Returns words that are a single token at the place of {word}, in the order of their ids.

    If there are fewer than MIN_WORDS, the result is numbers of five digits with the same number of
    tokens.
    """
    ids = sorted(tokenizer.get_vocab().values())
    pieces = tokenizer.decode_batch([[number] for number in ids], skip_special_tokens=False)
    words = dict.fromkeys(piece.strip() for piece in pieces)
    wanted = [
        w for w in words if len(w) > 2 and w.isalpha() and w == w.lower() and "\ufffd" not in w
    ]
    sizes = answer_sizes(tokenizer, template, wanted)
    single = [word for word in wanted if sizes[word] == 1]
    if len(single) >= MIN_WORDS:
        return single
    draw = random.Random(0)
    numbers = [str(number) for number in draw.sample(range(10_000, 100_000), MAX_NUMBERS)]
    sizes = answer_sizes(tokenizer, template, numbers)
    [(usual, _)] = Counter(sizes.values()).most_common(1)
    return [number for number in numbers if sizes[number] == usual]


def answer_sizes(tokenizer: Tokenizer, template: str, words: list[str]) -> Mapping[str, int]:
    """Returns the number of tokens that each word adds to a question, keyed by word.

    It is -1 if the word changes the tokens of the question.
    """
    facts = [fact_of(template, "it", word) for word in words]
    question = fact_of(template, "it", "").question
    start = tokenizer.encode(question, add_special_tokens=False).ids
    whole = tokenizer.encode_batch([question + f.answer for f in facts], add_special_tokens=False)
    return {
        word: len(encoding.ids) - len(start) if encoding.ids[: len(start)] == start else -1
        for word, encoding in zip(words, whole, strict=True)
    }
