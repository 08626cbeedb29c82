"""Text out of the shards: single documents, and sequences as the model sees them."""

from __future__ import annotations

import random
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from tokenizers import Tokenizer

from conf.errors import InputError
from data_pipeline.inspection.corpus import spread
from data_pipeline.inspection.plan import Plan
from data_pipeline.store.manifest import Manifest
from data_pipeline.store.shard_scan import BadIndex, read_index
from data_pipeline.tokenizing.documents import document_names

MOST_TOKENS = 4000
"""Of a document that are decoded."""
HEAD, TAIL = 1200, 300
"""Characters that are shown of a longer text."""
IGNORED = -100


@dataclass(frozen=True)
class Excerpt:
    """A part of a text: `cut` characters are left out between `head` and `tail`."""

    head: str
    cut: int
    tail: str


@dataclass(frozen=True)
class SampledDocument:
    """file and position: where the text is from, '' where nobody knows."""

    source: str
    shard: str
    number: int
    file: str
    position: int
    tokens: int
    text: Excerpt


@dataclass(frozen=True)
class Piece:
    """What a sequence holds of one document; width: percent of the sequence."""

    tokens: int
    width: float
    text: Excerpt
    is_padding: bool


@dataclass(frozen=True)
class SampledSequence:
    """A sample of a stage; masked: tokens without a label."""

    stage: str
    number: int
    source: str
    epoch: int
    pieces: list[Piece]
    no_label: int


def excerpt(text: str, more: int = 0) -> Excerpt:
    """The beginning and the end of a text; more: characters that follow and are not there."""
    if len(text) <= HEAD + TAIL and not more:
        return Excerpt(text, 0, "")
    if more:
        return Excerpt(text[:HEAD], len(text[HEAD:]) + more, "")
    return Excerpt(text[:HEAD], len(text) - HEAD - TAIL, text[-TAIL:])


def sample_documents(
    manifest: Manifest, tokenizer: Tokenizer, source: str, count: int, seed: int
) -> list[SampledDocument]:
    """Documents of a source's training split, each of another shard where there are so many."""
    choose = random.Random(f"{seed}:inspect:{source}")
    entries = spread(manifest.shards("train", source), count)
    found = []
    for number in range(count if entries else 0):
        entry = entries[number % len(entries)]
        prefix = manifest.folder / entry["file"]
        try:
            index = read_index(prefix.with_name(prefix.name + ".idx"))
            lengths = index.document_lengths()
            names = document_names(manifest, entry["file"])
            real = np.flatnonzero(lengths)
            if manifest.packed and names:  # what has no file is padding
                real = real[[names[number][0] != "" for number in real]]
            if not len(real):
                continue
            document = int(choose.choice(real))
            start = int(lengths[:document].sum())
            tokens = np.memmap(prefix.with_name(prefix.name + ".bin"), index.dtype, mode="r")
        except (BadIndex, OSError, ValueError, IndexError) as error:
            raise InputError(
                f"{prefix} cannot be read ({error}): see python -m data_pipeline verify "
                f"data={manifest.folder}."
            ) from None
        length = int(lengths[document])
        ids = tokens[start : start + min(length, MOST_TOKENS)].tolist()
        text = tokenizer.decode(ids, skip_special_tokens=False)
        left = round((length - len(ids)) * len(text) / max(1, len(ids)))
        file, position = names[document] if names else ("", 0)
        shown = excerpt(text, left)
        found.append(
            SampledDocument(source, entry["file"], document, file, position, length, shown)
        )
    return found


def sample_sequences(
    manifest: Manifest, tokenizer: Tokenizer, plan: Plan, count: int
) -> list[SampledSequence]:
    """`count` samples of each stage, evenly spread over it, read as a training step reads them."""
    from data_pipeline.sampling.batches import BatchReader

    if plan.order is None or not count:
        return []
    reader = BatchReader(manifest, plan.order)
    pad_id = int(manifest.tokenizer["pad_id"]) if manifest.packed else -1
    found = []
    for number, stage in enumerate(plan.stages):
        wanted = min(count, stage.samples)
        numbers = np.arange(wanted, dtype=np.int64) * (stage.samples // max(1, wanted))
        located = plan.order.locate(number, numbers)
        for row, sample in enumerate(numbers.tolist()):
            batch = reader.read(number, [sample])
            tokens = batch.tokens[0].tolist()
            borders = [*sorted({int(b) for b in batch.cu_seqlens if b < len(tokens)}), len(tokens)]
            pieces = []
            for start, end in pairwise(borders):
                ids = tokens[start:end]
                is_padding = set(ids) == {pad_id}
                text = "" if is_padding else tokenizer.decode(ids, skip_special_tokens=False)
                width = 100 * (end - start) / len(tokens)
                pieces.append(Piece(end - start, width, excerpt(text), is_padding))
            found.append(
                SampledSequence(
                    stage.name,
                    sample,
                    plan.order.sources[int(located.source[row])],
                    int(located.epoch[row]),
                    pieces,
                    int((batch.labels == IGNORED).sum()),
                )
            )
    return found
