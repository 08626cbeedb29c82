"""Which documents a corpus keeps, and which of them are held out: one pass over the text.

Exact copies are dropped, across all sources and before the split, so that no held-out document has
its copy in the training text.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass

from data_pipeline.corpus import CorpusConfig, SourceConfig
from data_pipeline.readers import Unit, name_hash, read_unit

TRAIN, HELD_OUT = "train", "held_out"


@dataclass(frozen=True)
class Scanned:
    """A document as the first pass saw it; `reason` says why it is left out, or is empty."""

    file: str
    position: int
    digest: bytes
    bytes: int
    reason: str


@dataclass(frozen=True)
class Chosen:
    """Numbers of a unit's documents, in reading order, by split."""

    train: tuple[int, ...]
    held_out: tuple[int, ...]


def scan(unit: Unit, source: SourceConfig) -> list[Scanned]:
    """Reads a unit and says of each document how large it is and whether a rule leaves it out."""
    scanned = []
    for file, position, text in read_unit(unit, source):
        raw = (text or "").encode()
        digest = hashlib.blake2b(raw, digest_size=16).digest()
        scanned.append(Scanned(file, position, digest, len(raw), reason_to_drop(text, source)))
    return scanned


def reason_to_drop(text: str | None, source: SourceConfig) -> str:
    """Name of the rule that leaves a text out, or ''."""
    if text is None:
        return "not_utf8"
    if not text.strip():
        return "empty"
    if source.max_line_length and max(map(len, text.splitlines())) > source.max_line_length:
        return "long_lines"
    if source.min_letters and sum(map(str.isalpha, text)) < source.min_letters * len(text):
        return "few_letters"
    return ""


def choose(
    corpus: CorpusConfig, units: list[Unit], scans: list[list[Scanned]]
) -> tuple[list[Chosen], dict[str, dict[str, int]]]:
    """The split of every unit, and counts of each source: files, documents and bytes kept, and
    what was left out by reason."""
    seen: set[bytes] = set()
    chosen = []
    counts: dict[str, Counter[str]] = {
        name: Counter(files=0, documents=0, bytes=0, not_utf8=0, duplicates=0)
        for name in corpus.sources
    }
    for unit, documents in zip(units, scans, strict=True):
        splits: dict[str, list[int]] = {TRAIN: [], HELD_OUT: []}
        count = counts[unit.source]
        count["files"] += len(unit.files)
        by_row = corpus.sources[unit.source].format != "text"
        for number, document in enumerate(documents):
            reason = document.reason or ("duplicates" if document.digest in seen else "")
            if reason:
                count[reason] += 1
                continue
            seen.add(document.digest)
            count["documents"] += 1
            count["bytes"] += document.bytes
            name = f"{document.file}#{document.position}" if by_row else document.file
            splits[split_of(name, corpus)].append(number)
        chosen.append(Chosen(tuple(splits[TRAIN]), tuple(splits[HELD_OUT])))
    return chosen, {name: dict(count) for name, count in counts.items()}


def split_of(name: str, corpus: CorpusConfig) -> str:
    """The split of a document: by a hash of its name, so it never moves when others come or go."""
    digest = name_hash(f"{corpus.seed}:split:{name}")
    share = int.from_bytes(digest[:8], "little") / 2**64
    return HELD_OUT if share < corpus.held_out_fraction else TRAIN
