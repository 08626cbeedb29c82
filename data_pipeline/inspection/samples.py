"""Decodes samples from the shards: single documents, and sequences as the model sees them."""

from __future__ import annotations

import random
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from tokenizers import Tokenizer

from conf.errors import InputError
from data_pipeline.inspection.corpus import spread
from data_pipeline.inspection.plan import RecipePlan
from data_pipeline.sampling.batches import IGNORED
from data_pipeline.store.manifest import Manifest
from data_pipeline.store.shard_scan import BadIndex, read_index
from data_pipeline.tokenizing.documents import document_names

MAX_TOKENS = 4000
"""Maximum number of tokens of a document that are decoded."""
HEAD, TAIL = 1200, 300
"""Number of characters shown from the beginning and from the end of a long text."""


@dataclass(frozen=True)
class Excerpt:
    """The beginning and the end of a text, with `cut` characters left out between them."""

    head: str
    cut: int
    tail: str


@dataclass(frozen=True)
class SampledDocument:
    """A decoded document. `file` is the raw file that it comes from, or '' if that is unknown."""

    source: str
    shard: str
    number: int
    file: str
    position: int
    tokens: int
    text: Excerpt


@dataclass(frozen=True)
class Piece:
    """The part of a sequence that belongs to one document. `width` is its percentage of tokens."""

    tokens: int
    width: float
    text: Excerpt
    is_padding: bool


@dataclass(frozen=True)
class SampledSequence:
    """A training sample of a stage. `no_label` is the number of its tokens without a label."""

    stage: str
    number: int
    source: str
    epoch: int
    pieces: list[Piece]
    no_label: int


def excerpt(text: str, more: int = 0) -> Excerpt:
    """Returns the beginning and end of a text.

    If `more` further characters follow the given text, its end is unknown and is left out.
    """
    if len(text) <= HEAD + TAIL and not more:
        return Excerpt(text, 0, "")
    if more:
        return Excerpt(text[:HEAD], len(text[HEAD:]) + more, "")
    return Excerpt(text[:HEAD], len(text) - HEAD - TAIL, text[-TAIL:])


def sample_documents(
    manifest: Manifest, tokenizer: Tokenizer, source: str, count: int, seed: int
) -> list[SampledDocument]:
    """Returns `count` training documents of a source, from as many different shards as possible."""
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
            if manifest.packed and names:  # padding has no file name
                real = real[[names[number][0] != "" for number in real]]
            if not len(real):
                continue
            document = int(choose.choice(real))
            start = int(lengths[:document].sum())
            tokens = np.memmap(prefix.with_name(prefix.name + ".bin"), index.dtype, mode="r")
        except (BadIndex, OSError, ValueError, IndexError) as error:
            raise InputError(
                f"{prefix} cannot be read ({error}). Find the damaged files with python -m "
                f"data_pipeline verify data={manifest.folder}."
            ) from None
        length = int(lengths[document])
        ids = tokens[start : start + min(length, MAX_TOKENS)].tolist()
        text = tokenizer.decode(ids, skip_special_tokens=False)
        rest = round((length - len(ids)) * len(text) / max(1, len(ids)))
        file, position = names[document] if names else ("", 0)
        shown = excerpt(text, rest)
        found.append(
            SampledDocument(source, entry["file"], document, file, position, length, shown)
        )
    return found


def sample_sequences(
    manifest: Manifest, tokenizer: Tokenizer, plan: RecipePlan, count: int
) -> list[SampledSequence]:
    """Returns up to `count` samples per stage, evenly spread and read as in a training step."""
    from data_pipeline.sampling.batches import BatchReader

    if plan.order is None or not count:
        return []
    reader = BatchReader(manifest, plan.order)
    pad_id = int(manifest.tokenizer["pad_id"]) if manifest.packed else -1
    found = []
    for number, stage in enumerate(plan.stages):
        shown = min(count, stage.samples)
        numbers = np.arange(shown, dtype=np.int64) * (stage.samples // max(1, shown))
        located = plan.order.locate(number, numbers)
        for row, sample in enumerate(numbers.tolist()):
            batch = reader.read(number, [sample])
            tokens = batch.tokens[0].tolist()
            starts = sorted({int(start) for start in batch.cu_seqlens if start < len(tokens)})
            pieces = []
            for start, end in pairwise([*starts, len(tokens)]):
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
