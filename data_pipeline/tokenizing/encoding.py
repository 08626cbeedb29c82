"""The encode phase: encodes the kept documents of a unit and writes its shards."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_pipeline.dedup import digests, index, matching, paragraphs
from data_pipeline.text.corpus import CorpusConfig
from data_pipeline.text.selection import (
    HELD_OUT,
    TRAIN,
    Selection,
    deduplicated_rows,
    split_documents,
)
from data_pipeline.text.units import Unit
from data_pipeline.tokenizing.encoder import Encoder, EncoderDiffers
from data_pipeline.tokenizing.shard_writer import ShardWriter, Text, shuffled


@dataclass(frozen=True)
class Target:
    """Destination and format of the shards, and whether `folder` also gets an index."""

    folder: Path
    tokenizer: Path
    encoder: str
    dtype: str
    eos_id: int
    pad_id: int
    keep_index: bool = False


def encode_unit(unit: Unit, corpus: CorpusConfig, work: Path, target: Target) -> dict[str, Any]:
    """Writes the shards of a unit, and returns their manifest entries, the counts and the encoder.

    If the fast encoder fails its check, the unit is written again with the reference encoder.
    """
    try:
        return _encode(unit, corpus, work, target, target.encoder)
    except EncoderDiffers:
        return _encode(unit, corpus, work, target, "tokenizers")


def _encode(
    unit: Unit, corpus: CorpusConfig, work: Path, target: Target, name: str
) -> dict[str, Any]:
    encoder = Encoder(target.tokenizer, name)
    writer = ShardWriter(encoder, target.dtype, target.eos_id, target.pad_id, corpus.fit)
    entries: dict[str, list[dict[str, Any]]] = {TRAIN: [], HELD_OUT: []}
    selection, documents = select_documents(unit, corpus, work)
    for split, texts in _shards_of_text(documents, corpus.shard_bytes):
        part = len(entries[split])
        shard = f"{unit.source}-{unit.number:05}" + (f"-{part:05}" if part else "")
        key = f"{corpus.seed}:{unit.source}:{unit.number}:{split}" + (f":{part}" if part else "")
        entry = writer.write(target.folder / split / shard, shuffled(texts, key))
        entries[split].append(entry)
    return {
        "entries": entries,
        "counts": dict(selection.counts),
        "report": selection.report.to_json(),
        "malformed": selection.malformed,
        "lines": selection.lines,
        "encoder": name,
        "checked": encoder.compared,
        "index": index.keep_tables(unit, corpus, work, target.folder) if target.keep_index else {},
    }


def select_documents(
    unit: Unit, corpus: CorpusConfig, work: Path
) -> tuple[Selection, Iterator[tuple[str, Text]]]:
    """Returns the selection of a unit, and an iterator over its kept documents with their split.

    The counts of the selection are updated while the documents are read. If deduplication is
    enabled, the scan and match phases must be complete.
    """
    if not digests.is_enabled(corpus):
        selection = Selection(unit, corpus)
        counts: Counter[str] = selection.counts
        kept = (row for _, row in selection.documents())
        return selection, split_documents(kept, unit, corpus, counts)
    numbers, selection = digests.load_scan(unit, corpus, work)
    plan = matching.load_plan([], work, corpus.cleaning.dedup)
    dropped = matching.duplicates_in(unit.id, numbers, plan, work)
    steps = digests.step_names(corpus)
    rows = deduplicated_rows(unit, corpus, set(numbers.tolist()), dropped, steps, selection)
    if corpus.cleaning.dedup.paragraphs:
        selection.report.expect(unit.source, [*steps, digests.REPEATED])
        rows = paragraphs.without_repeats(rows, selection, work, corpus.cleaning.dedup)
    kept = (row for _, row in rows)
    return selection, split_documents(kept, unit, corpus, selection.counts)


def _shards_of_text(
    documents: Iterator[tuple[str, Text]], shard_bytes: int
) -> Iterator[tuple[str, list[Text]]]:
    """Yields the documents of each shard with their split.

    A shard has at least `shard_bytes` of text, except for the last one of each split.
    """
    texts: dict[str, list[Text]] = {TRAIN: [], HELD_OUT: []}
    sizes = {TRAIN: 0, HELD_OUT: 0}
    for split, document in documents:
        texts[split].append(document)
        sizes[split] += len(document.text)
        if sizes[split] >= shard_bytes:
            yield split, texts[split]
            texts[split], sizes[split] = [], 0
    yield from ((split, rest) for split, rest in texts.items() if rest)


def rejected_lines(results: list[dict[str, Any]], units: list[Unit]) -> dict[str, list[str]]:
    """Returns the malformed rows of each source as JSON lines, with line numbers counted from 1."""
    before: Counter[str] = Counter()
    lines: dict[str, list[str]] = {}
    order = sorted(range(len(units)), key=lambda n: (units[n].source, units[n].number))
    for number in order:
        unit, result = units[number], results[number]
        one_file = unit.files[0].path if len(unit.files) == 1 else ""
        for row in result["malformed"]:
            row = {**row, "line": row["line"] + before[one_file] + 1}
            lines.setdefault(unit.source, []).append(json.dumps(row))
        if one_file:
            before[one_file] += result["lines"]
    return lines


def describe_malformed(malformed: dict[str, Any]) -> str:
    """Describes a malformed row for a message: its file, its line number and the reason."""
    return f"{malformed['file']}, line {malformed['line']}: {malformed['reason']}"
