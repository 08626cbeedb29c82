"""Computes from a trial what the whole preparation takes and leaves."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from data_pipeline.dedup import digests, matching
from data_pipeline.sizing.array import PhaseLoad
from data_pipeline.sizing.draw import Stratum
from data_pipeline.sizing.intervals import (
    Interval,
    effective_number,
    share,
    share_of_whole,
    total,
)
from data_pipeline.sizing.rates import MatchRates
from data_pipeline.sizing.trial import Drawn, Link, TrialResult
from data_pipeline.text.corpus import TokenizeConfig
from data_pipeline.text.units import Unit
from data_pipeline.tokenizing.prepare import SAMPLED_UNITS

READ_TEXT = ("scan", "encode")
"""Phases that read all files."""
AFTER_ENCODE = ("resolve", "record")
"""Phases that do not wait for other jobs."""
TRAINED_ERROR = 0.01
"""Relative error of the tokens, because the plan trains a tokenizer on other text."""


@dataclass(frozen=True)
class Reading:
    """Measurements of reading a source.

    share: fraction of its documents in the sample, of those that were read.
    read: fraction of its files that was read, by size.
    cpu_seconds: CPU seconds of reading this part.
    spread: relative error of the number of documents, because not all units were read.
    malformed: number of unusable rows in this part.
    """

    share: float
    read: float
    cpu_seconds: float
    spread: float
    malformed: int


class Forecast:
    """Scales the results of a trial to the whole corpus, stratum by stratum."""

    def __init__(
        self,
        config: TokenizeConfig,
        units: list[Unit],
        readings: dict[str, Reading],
        trial: TrialResult,
        measure: Callable[[float], MatchRates],
    ) -> None:
        self.config = config
        self.units = units
        self.readings = readings
        self.trial = trial
        self.steps = digests.step_names(config.corpus)
        self.drops = self._drops()
        self.documents = self._documents()
        self.kept, self.text_bytes, self.tokens = self._kept()
        duplicates = sum(drop.value for (_, step), drop in self.drops.items() if step in self.steps)
        self.copies = duplicates / max(1.0, self.scanned)
        self.rates = measure(self.copies) if self.steps else MatchRates()
        self.dedup = (
            matching.make_plan(self._scanned_by_unit(), config.corpus.cleaning.dedup)
            if self.steps
            else None
        )

    @property
    def read(self) -> float:
        """Fraction of the corpus that was read."""
        sizes = Counter[str]()
        for unit in self.units:
            sizes[unit.source] += unit.bytes
        whole = sum(sizes.values())
        if not whole:
            return 1.0
        return sum(size * self.readings[source].read for source, size in sizes.items()) / whole

    # What is in the corpus, and what is dropped.

    def of_documents(self, stratum: Stratum) -> float:
        """Returns the number of documents of a stratum in the whole corpus."""
        return stratum.documents / self.readings[stratum.source].read

    def of_bytes(self, stratum: Stratum) -> float:
        """Returns the bytes of text of a stratum in the whole corpus."""
        return stratum.bytes / self.readings[stratum.source].read

    def _share(self, one: Drawn, hits: float, guess: float = 0.5) -> Interval:
        stratum = one.stratum
        drawn = stratum.drawn * self.readings[stratum.source].read
        return share(hits, len(stratum.rows), effective_number(stratum.keys), drawn, guess)

    def _guess(self, stratum: Stratum, step: str, typical: float) -> float:
        """Returns the likely share that a step drops of a stratum without a sample."""
        if step not in self.steps:
            return typical
        # Documents that share a key are mostly copies.
        likely = digests.EXACT if digests.EXACT in self.steps else self.steps[-1]
        return stratum.repeated / stratum.documents if step == likely else 0.0

    def _documents(self) -> Interval:
        parts = [
            (1.0, Interval(n, n, n).widened(self.readings[one.stratum.source].spread))
            for one in self.trial.drawn
            if (n := self.of_documents(one.stratum)) is not None
        ]
        return total(parts)

    def _drops(self) -> dict[tuple[str, str], Interval]:
        """Returns the number of documents that each step of each source drops."""
        found: dict[tuple[str, str], Interval] = {}
        for source in self.readings:
            own = [one for one in self.trial.drawn if one.stratum.source == source]
            counts = [_dropped(one) for one in own]
            for step in dict.fromkeys(step for count in counts for step in count):
                sampled = sum(len(one.stratum.rows) for one in own)
                typical = sum(count[step] for count in counts) / max(1, sampled)
                parts = [
                    (
                        self.of_documents(one.stratum),
                        self._share(one, count[step], self._guess(one.stratum, step, typical)),
                    )
                    for one, count in zip(own, counts, strict=True)
                ]
                found[source, step] = total(parts).widened(self.readings[source].spread)
        self.seen = [drop for (_, step), drop in found.items() if step in self.steps]
        if self.steps:
            self._add_unseen(found)
        return found

    def _add_unseen(self, found: dict[tuple[str, str], Interval]) -> None:
        """Adds the duplicates whose original is neither in the sample nor was read."""
        by_unit = {one.unit: one for one in self.trial.drawn}
        missed: Counter[tuple[str, str]] = Counter()
        for link in self.trial.links:
            stratum = by_unit[link.unit].stratum
            together = link.overlap + (1 - link.overlap) * stratum.drawn
            weight = self.of_documents(stratum) / len(stratum.rows)
            missed[stratum.source, link.kind] += weight * (1 / together - 1)  # type: ignore[assignment]
        for key, extra in missed.items():
            known = found[key]
            found[key] = Interval(known.low, known.value + extra / 2, known.high + extra)
        if self.read >= 1:
            return
        for source in self.readings:
            links = [x for x in self.trial.links if by_unit[x.unit].stratum.source == source]
            seen = [found[source, name] for name in self.steps if (source, name) in found]
            part, grown, before = self._grown(source, links, seen)
            for name in self.steps:
                known = found.get((source, name), Interval(0.0, 0.0, 0.0))
                more = grown.value - before.value if name == self.steps[-1] else 0.0
                found[source, name] = Interval(
                    # With more text, near duplicates may become exact ones.
                    known.low if name == self.steps[0] else 0.0,
                    known.value + part * more,
                    min(part, known.high + part * max(0.0, grown.high - before.high)),
                )

    def _grown(
        self, source: str | None, links: list[Link], seen: list[Interval]
    ) -> tuple[float, Interval, Interval]:
        """Returns the documents of a source, and the share of duplicates: of all, of those read."""
        own = [one for one in self.trial.drawn if source in (None, one.stratum.source)]
        documents = sum(self.of_documents(one.stratum) for one in own)
        before = total([(1 / max(1.0, documents), drop) for drop in seen])
        sizes = [count + 1 for count in Counter(link.root for link in links).values()]
        sampled = sum(len(one.stratum.rows) for one in own)
        read = self.read if source is None else self.readings[source].read
        return documents, share_of_whole(before, sizes, sampled, read), before

    def _dropped(self) -> Interval:
        """Returns the number of documents that all steps drop."""
        own = [drop for (_, step), drop in self.drops.items() if step in self.steps]
        rest = [drop for (_, step), drop in self.drops.items() if step not in self.steps]
        duplicates = total([(1.0, drop) for drop in own])
        if self.read < 1 and self.steps:
            documents, grown, _ = self._grown(None, self.trial.links, self.seen)
            duplicates = grown.scaled(documents)
        return total([(1.0, duplicates), *((1.0, drop) for drop in rest)])

    @property
    def scanned(self) -> float:
        """Number of documents that the steps before deduplication keep."""
        lost = sum(drop.value for (_, step), drop in self.drops.items() if step not in self.steps)
        return max(0.0, self.documents.value - lost)

    def _kept(self) -> tuple[Interval, Interval, Interval]:
        """Returns the kept documents, the bytes of their text, and their tokens."""
        kept = self._dropped().minus_from(self.documents.value)
        kept = Interval(max(0.0, kept.low), max(0.0, kept.value), kept.high)
        pooled = self._pooled()
        text, tokens, parts = 0.0, 0.0, []
        seen = 0.0
        for one in self.trial.drawn:
            stratum, entries = one.stratum, _entries(one)
            size = self.of_bytes(stratum)
            kept_bytes = sum(entry["bytes"] for entry in entries)
            drawn_bytes = int(stratum.sizes.sum())
            effective = effective_number(stratum.keys, stratum.sizes)
            drawn = stratum.drawn * self.readings[stratum.source].read
            guess = 1 - stratum.repeated / stratum.documents
            kept_share = share(kept_bytes, drawn_bytes, effective, drawn, guess)
            parts.append((size, kept_share))
            text += size * kept_share.value
            tokens += (
                size
                * kept_share.value
                * (
                    sum(entry["tokens"] for entry in entries) / kept_bytes
                    if kept_bytes
                    else pooled[stratum.source]
                )
            )
            seen += (
                self.of_documents(stratum)
                * self._share(one, sum(entry["documents"] for entry in entries), guess).value
            )
        by_bytes = total(parts)
        # Documents that the sample cannot show to be duplicates are dropped in proportion.
        factor = kept.value / seen if seen else 0.0
        low = math.hypot(
            _relative(by_bytes.value - by_bytes.low, by_bytes.value),
            _relative(kept.value - kept.low, kept.value),
        )
        high = math.hypot(
            _relative(by_bytes.high - by_bytes.value, by_bytes.value),
            _relative(kept.high - kept.value, kept.value),
        )
        spread = Interval(max(0.0, 1 - low) * factor, factor, (1 + high) * factor)
        counted = spread.scaled(tokens)
        if self.config.tokenizer.path is None:
            counted = counted.widened(TRAINED_ERROR)
        return kept, spread.scaled(text), counted

    def _pooled(self) -> dict[str, float]:
        """Returns the tokens per byte of each source."""
        found = {}
        for source in self.readings:
            entries = [
                e for one in self.trial.drawn if one.stratum.source == source for e in _entries(one)
            ]
            size = sum(entry["bytes"] for entry in entries)
            found[source] = sum(entry["tokens"] for entry in entries) / size if size else 0.0
        return found

    def _scanned_by_unit(self) -> list[int]:
        """Returns about how many documents of each unit are compared."""
        whole = sum(unit.bytes for unit in self.units) or len(self.units)
        return [math.ceil(self.scanned * (unit.bytes or 1) / whole) for unit in self.units]

    # What the phases take.

    def loads(self) -> list[PhaseLoad]:
        """Returns the work of each phase, in the order in which they run."""
        found = []
        for phase, seconds in self.trial.seconds.items():
            if phase == "match" and self.dedup is not None:
                tasks = self.dedup.match_tasks
                cpu = self.rates.match_seconds(self.dedup, self.scanned, len(self.units))
                found.append(PhaseLoad(phase, tasks, cpu, cpu / tasks))
            elif phase == "merge" and self.dedup is not None:
                tasks = self.dedup.merge_tasks
                cpu = self.rates.merge_seconds(self.dedup, self.scanned)
                found.append(PhaseLoad(phase, tasks, cpu, cpu / tasks))
            elif phase in AFTER_ENCODE:  # done by a job of the encode phase
                sampled = sum(len(one.stratum.rows) for one in self.trial.drawn)
                cpu = found[-1].cpu_seconds + sum(seconds) * self.documents.value / max(1, sampled)
                found[-1] = replace(found[-1], cpu_seconds=cpu)
            elif phase == "prepare":
                cpu = self._prepare_seconds(seconds[0])
                found.append(PhaseLoad(phase, 1, cpu, cpu))
            elif len(seconds) > max(one.unit for one in self.trial.drawn):
                cpu = self._seconds_by_unit(seconds, phase in READ_TEXT)
                whole = sum(unit.bytes for unit in self.units) or 1
                largest = max(unit.bytes for unit in self.units) / whole * cpu
                found.append(PhaseLoad(phase, len(self.units), cpu, largest))
            else:  # a phase of later versions, in proportion to the documents
                sampled = sum(len(one.stratum.rows) for one in self.trial.drawn)
                cpu = sum(seconds) * self.documents.value / max(1, sampled)
                found.append(PhaseLoad(phase, len(seconds), cpu, max(seconds)))
        return found

    def once_seconds(self) -> float:
        """Returns the CPU seconds that every process spends once in the phases by unit."""
        pairs = {(one.once, one.fixed) for one in self.trial.drawn}
        return self.trial.first_seconds + sum(
            max(0.0, seconds[once] - seconds[fixed])
            for seconds in self.trial.seconds.values()
            for once, fixed in pairs
            if len(seconds) > fixed
        )

    def _seconds_by_unit(self, seconds: list[float], reads: bool) -> float:
        found = 0.0
        for source, reading in self.readings.items():
            own = [one for one in self.trial.drawn if one.stratum.source == source]
            count = sum(unit.source == source for unit in self.units)
            fixed = min(seconds[own[0].fixed], seconds[own[0].once])
            spent = [max(0.0, seconds[one.unit] - fixed) for one in own]
            drawn = [float(one.stratum.sizes.sum()) for one in own]
            pooled = sum(spent) / max(1.0, sum(drawn))
            found += reading.cpu_seconds / reading.read * reads + count * fixed
            for one, took, size in zip(own, spent, drawn, strict=True):
                found += self.of_bytes(one.stratum) * (took / size if size else pooled)
        return found

    def _text_by_unit(self) -> list[float]:
        """Returns about how many bytes of text each unit keeps."""
        texts = Counter[str]()
        for one in self.trial.drawn:
            size = float(one.stratum.sizes.sum())
            kept = sum(entry["bytes"] for entry in _entries(one))
            texts[one.stratum.source] += (  # type: ignore[assignment]
                self.of_bytes(one.stratum) * kept / size if size else 0.0
            )
        return self._by_unit(texts)

    def raw_by_unit(self) -> list[float]:
        """Returns about how many bytes of text are read from each unit."""
        texts = Counter[str]()
        for one in self.trial.drawn:
            texts[one.stratum.source] += self.of_bytes(one.stratum)  # type: ignore[assignment]
        return self._by_unit(texts)

    def _by_unit(self, amounts: Counter[str]) -> list[float]:
        """Divides the amount of each source among its units, in proportion to their bytes."""
        sizes = Counter[str]()
        for unit in self.units:
            sizes[unit.source] += unit.bytes or 1
        return [amounts[u.source] * (u.bytes or 1) / sizes[u.source] for u in self.units]

    def trained_bytes(self) -> float:
        """Returns the bytes of text that the tokenizer will be trained on."""
        count = min(len(self.units), SAMPLED_UNITS)
        budget = self.config.tokenizer.train_bytes // count
        texts = self._text_by_unit()
        chosen = [number * len(self.units) // count for number in range(count)]
        return sum(min(budget, texts[number]) for number in chosen)

    def _prepare_seconds(self, seconds: float) -> float:
        size, (less, fewer_seconds) = self.trial.trained_bytes, self.trial.again
        if size <= less:
            return seconds
        # Counting words grows with the text, and merging them with the number of distinct words.
        growth = math.log(max(1.0, seconds / max(1e-3, fewer_seconds))) / math.log(size / less)
        return seconds * float((self.trained_bytes() / size) ** min(1.0, growth))

    # Number of shards.

    def shard_count(self) -> int:
        """Returns about how many shards are written."""
        corpus = self.config.corpus
        held_out = corpus.held_out_fraction
        count = 0.0
        texts = self._text_by_unit()
        whole = max(1.0, sum(texts))
        for text in texts:
            documents = self.kept.value * text / whole
            for fraction in (held_out, 1 - held_out):
                if fraction:
                    likely = 1 - math.exp(-documents * fraction)
                    count += likely * max(1, math.ceil(text * fraction / corpus.shard_bytes))
        return round(count)


def _dropped(one: Drawn) -> Counter[str]:
    """Returns the number of documents that each step dropped from a stratum's sample."""
    found: Counter[str] = Counter()
    malformed = one.encoded["counts"].get("malformed", 0)
    if malformed:
        found["malformed"] = malformed
    for step in one.encoded["report"]["sources"][one.stratum.source]["steps"]:
        found[step["name"]] += step["dropped_documents"]
    return found


def _entries(one: Drawn) -> list[dict[str, Any]]:
    return [entry for part in one.encoded["entries"].values() for entry in part]


def _relative(part: float, whole: float) -> float:
    return part / whole if whole else 0.0
