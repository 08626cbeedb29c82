"""Batches of a corpus that `tokenize add_to=` has made larger."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from data_pipeline.sampling.batches import IGNORED, BatchReader
from data_pipeline.sampling.order import SampleOrder
from data_pipeline.sampling.stage import Stage
from data_pipeline.store.corpus import open_stream
from data_pipeline.store.manifest import Manifest, load_manifest
from data_pipeline.tokenizing.tokenize import tokenize
from tests.data_pipeline.dedup.test_duplicates import text_of, write
from tests.data_pipeline.tokenizing.test_addition import config_for

SEQ = 32


@pytest.fixture(scope="module", params=[(), (SEQ,)], ids=["joined", "packed"])
def editions(request, tmp_path_factory) -> tuple[Manifest, Manifest]:
    """A corpus before and after an addition, also with documents that are packed."""
    root = tmp_path_factory.mktemp("corpus")
    write(root / "old.jsonl", [text_of(seed) for seed in range(30)])
    write(root / "new.jsonl", [text_of(seed) for seed in range(30, 50)])
    write(root / "code.jsonl", [text_of(seed) for seed in range(50, 60)])
    options: dict[str, Any] = {"fit": request.param, "minhash": False}
    tokenize(config_for(root / "out", {"web": [root / "old.jsonl"]}, **options))
    before = load_manifest(root / "out")
    sources = {"web": [root / "new.jsonl"], "code": [root / "code.jsonl"]}
    tokenize(config_for(root / "out", sources, add=True, **options))
    return before, load_manifest(root / "out")


@pytest.fixture(scope="module")
def order(editions) -> SampleOrder:
    """Most of an epoch of the first edition, and then one and a half of what is left and new."""
    before, after = (manifest.source_tokens("train") for manifest in editions)
    old = Stage(SEQ, before["web"] * 3 // 4 // SEQ, {"web": 1.0})
    count = (after["web"] + after["code"]) // SEQ
    new = Stage(SEQ, count, {source: float(n) for source, n in after.items()}, None, after)
    return SampleOrder(before, [old, new], 7)


def test_the_stage_before_reads_what_it_read(editions, order):
    before, after = editions
    alone = BatchReader(before, SampleOrder(order.source_tokens, order.stages[:1], 7))
    grown = BatchReader(after, order)
    numbers = np.arange(order.stages[0].samples)
    ours, theirs = alone.read(0, numbers), grown.read(0, numbers)
    for name in ("tokens", "labels", "cu_seqlens", "sources"):
        assert torch.equal(getattr(ours, name), getattr(theirs, name))
    assert alone.document_tokens == grown.document_tokens[:1]


def test_every_token_of_both_editions_is_read_once_in_the_epoch_in_which_it_grew(editions, order):
    _, after = editions
    reader = BatchReader(after, order)
    stream = open_stream(after, "train", "web")
    whole = np.zeros((1, len(stream)), np.uint16)
    stream.read(np.array([0]), whole, np.array([0]))
    served: Counter[tuple[int, int]] = Counter()
    for number, stage in enumerate(order.stages):
        numbers = np.arange(stage.samples)
        at = order.locate(number, numbers)
        batch = reader.read(number, numbers)
        for row in np.flatnonzero(at.source == 0).tolist():
            start = int(at.start[row])
            served[int(at.epoch[row]), start] += 1
            expected = whole[0, start : start + SEQ].astype(np.int64)
            assert batch.tokens[row].tolist() == expected.tolist()
    assert max(served.values()) == 1
    assert {epoch for epoch, _ in served} == {0, 1}
    atoms = (len(stream) - 1) // SEQ
    assert sorted(start for epoch, start in served if not epoch) == list(range(0, atoms * SEQ, SEQ))


def test_the_last_token_of_an_edition_does_not_predict_the_addition(editions, order):
    """A document of the addition follows it in the stream, and documents are separate."""
    before, after = editions
    end = before.source_tokens("train")["web"]
    served = order.find("web", end - 1, end)
    assert (served.stage == 1).all()
    assert len(served.stage)
    batch = BatchReader(after, order).read(1, served.sample[:1])
    assert int(batch.labels[0, end - 1 - int(served.start[0])]) == IGNORED


def test_an_order_of_the_larger_corpus_alone_is_another(editions, order):
    after = editions[1].source_tokens("train")
    stages = [replace(stage, source_tokens=None) for stage in order.stages]
    alone = SampleOrder(after, stages, 7)
    numbers = np.arange(20)
    assert alone.locate(0, numbers).start.tolist() != order.locate(0, numbers).start.tolist()
