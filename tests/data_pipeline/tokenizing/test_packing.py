"""Packing loses no token, and cuts no document that a sequence could hold."""

from __future__ import annotations

import json
from collections import defaultdict

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.store.manifest import load_manifest
from data_pipeline.store.shards import Shard
from data_pipeline.text.corpus import SourceConfig
from data_pipeline.tokenizing.packing import pack
from data_pipeline.tokenizing.tokenize import tokenize

BLOCKS = st.sampled_from([(8,), (4, 16), (8, 16, 64), (2, 4, 8)])


@given(st.lists(st.integers(1, 150), max_size=60), BLOCKS)
@settings(max_examples=300, deadline=None)
def test_every_token_is_placed_once_and_no_boundary_cuts_what_fits(lengths, blocks):
    pieces, total = pack(lengths, blocks)
    longest = max(blocks)
    assert total % longest == 0
    taken = np.zeros(total, int)
    seen = defaultdict(list)
    for piece in pieces:
        taken[piece.offset : piece.offset + piece.length] += 1
        seen[piece.document].append(piece)
        smallest = min(size for size in blocks if size >= piece.length)
        assert piece.offset // smallest == (piece.offset + piece.length - 1) // smallest
    assert taken.max(initial=0) <= 1
    assert taken.sum() == sum(lengths)
    for document, length in enumerate(lengths):
        parts = sorted(seen[document], key=lambda piece: piece.start)
        assert [p.start for p in parts] == [n * longest for n in range(len(parts))]
        assert sum(p.length for p in parts) == length
        assert all(p.length == longest for p in parts[:-1])


@given(st.lists(st.integers(1, 150), min_size=1, max_size=60), BLOCKS)
@settings(max_examples=100, deadline=None)
def test_padding_is_at_the_end_of_blocks_alone(lengths, blocks):
    pieces, total = pack(lengths, blocks)
    free = np.ones(total + 1, bool)
    for piece in pieces:
        free[piece.offset : piece.offset + piece.length] = False
    ends = np.flatnonzero(free[:-1] & ~free[1:]) + 1  # where padding is followed by a document
    assert all(end % min(blocks) == 0 for end in ends if end < total)


def test_short_documents_leave_little_padding():
    rng = np.random.default_rng(0)
    lengths = np.minimum(4000, rng.lognormal(5.5, 1, 5000).astype(int) + 1)
    _, total = pack(lengths.tolist(), [2048])
    assert total - lengths.sum() < 2 * 2048


def test_a_packed_corpus_has_whole_documents_and_padding(configure, tmp_path):
    texts = [f"{number} " + "some words " * (number % 17) for number in range(120)]
    rows = [{"text": text, "skip": [[0, 2]] if n % 3 == 0 else []} for n, text in enumerate(texts)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = configure(tmp_path, tmp_path / "out", fit=[32, 64], held_out_fraction=0.0)
    source = SourceConfig("jsonl", [str(tmp_path / "rows.jsonl")], no_loss_field="skip")
    config.corpus.sources = {"rows": source}
    tokenize(config)
    manifest = load_manifest(tmp_path / "out")
    assert manifest.packed == [32, 64]
    (entry,) = manifest.shards("train", "rows")
    assert entry["masked"]
    shard = Shard(manifest.folder / entry["file"], manifest.dtype)
    tokens = np.array(shard.tokens)
    pad, eos = manifest.tokenizer["pad_id"], manifest.tokenizer["eos_id"]
    assert len(tokens) % 64 == 0
    assert (tokens == eos).sum() == len(texts)
    mask = np.frombuffer((manifest.folder / f"{entry['file']}.mask").read_bytes(), np.uint8)
    assert len(mask) == len(tokens)
    assert mask[tokens == pad].all()
    assert not mask[tokens == eos].any()
    assert mask[tokens != pad].sum() >= 40  # the first characters of every third document
    # No text of at most 64 tokens runs over a border of 64.
    for start in range(0, len(tokens), 64):
        block = tokens[start : start + 64]
        filled = block[block != pad]
        assert len(filled) == 0 or filled[-1] == eos
