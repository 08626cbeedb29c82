"""Selects the documents of a corpus, and splits them into training and held-out documents.

A document must pass the rules of its source, then the cleaning steps, and then deduplication, which
compares the whole corpus and therefore needs a separate pass over the text (`dedup`). The split
is the last step, so that no duplicate of a held-out document is trained on. It depends on a hash of
the document's name.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from conf.errors import InputError
from data_pipeline.cleaning.chain import Chain, Outcome, utf8_size
from data_pipeline.cleaning.report import CleaningReport
from data_pipeline.text.corpus import CorpusConfig, SourceConfig
from data_pipeline.text.readers import Row, read_unit
from data_pipeline.text.units import Unit, name_hash

TRAIN, HELD_OUT = "train", "held_out"
RULES = "rules"
"""Name of the first step in every report, which applies the rules set by the keys of a source."""

NoLoss = Sequence[tuple[int, int]]
"""Ranges [start, end) of the characters of a text that are not trained on."""


@dataclass(frozen=True, slots=True)
class Text:
    """A selected document. `no_loss` holds the ranges of characters that are not trained on."""

    file: str
    position: int
    text: str
    no_loss: NoLoss = ()


class Selection:
    """Selects the documents of one unit, and counts what is dropped.

    Attributes:
        counts: number of kept documents and bytes, and number of dropped rows by rule.
        report: cleaning report, which tells what each step dropped, with examples.
        malformed: rows that could not be used.
        lines: number of rows or lines read so far.
    """

    def __init__(self, unit: Unit, corpus: CorpusConfig) -> None:
        self.unit = unit
        self.source: SourceConfig = corpus.sources[unit.source]
        self.counts: Counter[str] = Counter()
        self.report = CleaningReport()
        self.malformed: list[dict[str, object]] = []
        self.lines = 0
        self._chain = chain_of(corpus, unit.source)
        self.report.expect(unit.source, [RULES, *corpus.steps_of(unit.source)])

    def documents(self) -> Iterator[tuple[int, Row]]:
        """Yields each row that is kept: its number, and the row with its cleaned text.

        Raises InputError if more than `max_malformed` rows are malformed.
        """
        for number, row in enumerate(read_unit(self.unit, self.source)):
            self.lines = row.line + 1
            if row.flaw:
                self._reject(row)
                continue
            outcome = self._examine(row.text, row.url)
            self.report.add(self.unit.source, row.file, row.position, outcome)
            if outcome.dropped_by:
                rule = outcome.reason if outcome.dropped_by == RULES else outcome.dropped_by
                self.counts[rule] += 1
                continue
            yield number, row._replace(text=outcome.text)

    def _examine(self, text: str, url: str) -> Outcome:
        size = utf8_size(text)
        reason = reason_to_drop(text, self.source)
        if reason:
            return Outcome(text, RULES, reason, sizes=(size,))
        if self._chain is None:
            return Outcome(text, sizes=(size,))
        outcome = self._chain.run(text, url)
        return replace(outcome, sizes=(size, *outcome.sizes))

    def _reject(self, row: Row) -> None:
        self.counts["malformed"] += 1
        self.malformed.append(
            {"file": row.file, "line": row.line, "reason": row.flaw, "text": row.raw}
        )
        if len(self.malformed) > self.source.max_malformed:
            raise InputError(
                f"corpus.sources.{self.unit.source}.max_malformed={self.source.max_malformed}: "
                f"{self.unit.files[0].path} and the files read with it have more malformed rows. "
                f"The first one is {self.malformed[0]['file']}, row "
                f"{_row_number(self.malformed[0])}: "
                f"{self.malformed[0]['reason']}. Correct the rows, or raise max_malformed."
            )


def deduplicated_rows(
    unit: Unit,
    corpus: CorpusConfig,
    kept: set[int],
    dropped: dict[int, str],
    steps: list[str],
    selection: Selection,
) -> Iterator[tuple[int, Row]]:
    """Yields the numbered documents of a unit without duplicates, in the second pass over the text.

    Args:
        unit: the unit to read.
        corpus: the corpus that the unit belongs to.
        kept: numbers of the rows that the first pass kept.
        dropped: numbers of the duplicates, each with the deduplication step that found it.
        steps: names of the deduplication steps, in order.
        selection: the selection whose counts and report are updated.
    """
    source = corpus.sources[unit.source]
    chain = chain_of(corpus, unit.source)
    selection.report.expect(unit.source, steps)
    for number, row in enumerate(read_unit(unit, source)):
        if number not in kept:
            continue
        if row.flaw:
            raise InputError(
                f"{row.file} was changed while it was being read. Tokenize the corpus again."
            )
        text = row.text if chain is None else chain.transform(row.text)
        size = utf8_size(text)
        found_by = dropped.get(number, "")
        for step in steps:
            selection.report.reach(unit.source, step, size)
            if step == found_by:
                selection.counts[step] += 1
                outcome = Outcome(text, step, step, sizes=(size,))
                selection.report.drop(unit.source, row.file, row.position, outcome)
                break
        else:
            yield number, row._replace(text=text)


def split_documents(
    rows: Iterator[Row], unit: Unit, corpus: CorpusConfig, counts: Counter[str]
) -> Iterator[tuple[str, Text]]:
    """Yields each kept row as a document with its split, and counts the documents and bytes."""
    by_row = corpus.sources[unit.source].format != "text"
    for row in rows:
        counts["documents"] += 1
        counts["bytes"] += utf8_size(row.text)
        name = f"{row.file}#{row.position}" if by_row else row.file
        yield split_of(name, corpus), Text(row.file, row.position, row.text, row.no_loss)


def reason_to_drop(text: str, source: SourceConfig) -> str:
    """Returns the name of the source's rule that a text violates, or '' if there is none."""
    if not text or text.isspace():
        return "empty"
    if len(text) < source.min_chars:
        return "too_short"
    if source.max_chars and len(text) > source.max_chars:
        return "too_long"
    if source.max_line_length and max(map(len, text.splitlines())) > source.max_line_length:
        return "long_lines"
    if source.min_letters and sum(map(str.isalpha, text)) < source.min_letters * len(text):
        return "few_letters"
    return ""


def split_of(name: str, corpus: CorpusConfig) -> str:
    """Returns the split of a document, which depends only on its name and the seed."""
    digest = name_hash(f"{corpus.seed}:split:{name}")
    fraction = int.from_bytes(digest[:8], "little") / 2**64
    return HELD_OUT if fraction < corpus.held_out_fraction else TRAIN


def chain_of(corpus: CorpusConfig, source: str) -> Chain | None:
    """Returns the cleaning chain of a source, or None if it has no steps.

    A chain is loaded once per process.
    """
    steps = corpus.steps_of(source)
    return _chain(_Key(corpus, tuple(steps))) if steps else None


class _Key:
    """Cache key of a chain, which is needed because configs can be compared but not hashed."""

    def __init__(self, corpus: CorpusConfig, steps: tuple[str, ...]) -> None:
        self.cleaning, self.steps = corpus.cleaning, steps

    def __hash__(self) -> int:
        return hash(self.steps)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Key) and (self.cleaning, self.steps) == (
            other.cleaning,
            other.steps,
        )


@lru_cache(8)
def _chain(key: _Key) -> Chain:
    return Chain(key.cleaning, list(key.steps))


def _row_number(malformed: dict[str, object]) -> int:
    return int(str(malformed["line"])) + 1
