"""Our reader against Megatron's own, and what it refuses."""

from __future__ import annotations

import shutil
import tracemalloc

import numpy as np
import pytest
import torch

from conf.errors import InputError
from data_pipeline.batches import IGNORED, BatchReader, held_out_batches, open_stream
from data_pipeline.manifest import load_manifest
from data_pipeline.order import OrderStage, SampleOrder
from data_pipeline.shards import HEADER, MAGIC, Shard


@pytest.fixture
def copy(corpus, tmp_path):
    """A copy of the corpus that a test may damage."""
    shutil.copytree(corpus.folder, tmp_path / "copy")
    return load_manifest(tmp_path / "copy")


def concatenated(manifest, source):
    """The stream of a source as Megatron reads it, and where its documents begin."""
    from megatron.core.datasets.indexed_dataset import IndexedDataset

    documents = []
    for entry in manifest.shards("train", source):
        dataset = IndexedDataset(str(manifest.folder / entry["file"]))
        documents += [dataset[i].copy() for i in range(len(dataset))]  # views into its map
    lengths = [len(document) for document in documents]
    return np.concatenate(documents), np.cumsum([0, *lengths[:-1]])


@pytest.mark.parametrize("source", ["code", "prose"])
def test_the_stream_is_what_megatron_reads(corpus, source):
    expected, starts = concatenated(corpus, source)
    stream = open_stream(corpus, "train", source)
    assert len(stream) == len(expected)
    everything = np.empty(len(expected), np.int64)
    assert np.array_equal(stream.read(0, everything), starts)
    assert np.array_equal(everything, expected)
    for start in (1, 777, len(stream.shards[0].tokens) - 50):
        part = np.empty(100, np.int64)
        borders = stream.read(start, part)
        assert np.array_equal(part, expected[start : start + 100])
        inside = starts[(starts >= start) & (starts < start + 100)] - start
        assert np.array_equal(borders, inside)


def test_batches_hold_tokens_labels_and_documents(corpus):
    order = SampleOrder(
        corpus.source_tokens("train"), [OrderStage(64, 500, {"code": 1, "prose": 1})], 3
    )
    reader = BatchReader(corpus, order)
    numbers = np.array([0, 7, 499])
    batch = reader.read(0, numbers)
    located = order.locate(0, numbers)
    bounds = sorted(set(batch.cu_seqlens.tolist()))
    assert bounds[0] == 0
    assert bounds[-1] == 3 * 64
    assert {0, 64, 128} <= set(bounds)
    for row in range(3):
        stream, starts = concatenated(corpus, order.sources[located.source[row]])
        start = located.start[row]
        assert np.array_equal(batch.tokens[row], stream[start : start + 64])
        begins = np.isin(np.arange(start + 1, start + 65), starts)
        expected = np.where(begins, IGNORED, stream[start + 1 : start + 65])
        assert np.array_equal(batch.labels[row], expected)
        inside = starts[(starts > start) & (starts < start + 64)] - start + row * 64
        assert set(inside.tolist()) == {b for b in bounds if row * 64 < b < (row + 1) * 64}


def test_any_grouping_of_samples_gives_the_same_rows(corpus):
    order = SampleOrder(
        corpus.source_tokens("train"), [OrderStage(32, 256, {"code": 3, "prose": 1})], 3
    )
    reader = BatchReader(corpus, order)
    whole = reader.read(0, np.arange(64)).tokens
    for size in (1, 3, 16):
        parts = [reader.read(0, np.arange(64)[i : i + size]).tokens for i in range(0, 64, size)]
        assert torch.equal(torch.cat(parts), whole)


def test_cu_seqlens_keep_their_length(corpus):
    order = SampleOrder(corpus.source_tokens("train"), [OrderStage(64, 600, {"code": 1})], 3)
    reader = BatchReader(corpus, order)
    lengths = {len(reader.read(0, range(i, i + 8)).cu_seqlens) for i in range(0, 600, 8)}
    assert len(lengths) == 1


def test_held_out_batches_are_consecutive(corpus):
    stream = open_stream(corpus, "held_out", "code")
    batches = list(held_out_batches(corpus, "code", 64, 4, 1000))
    assert [len(batch.tokens) for batch in batches] == [4, 4, 4, 3]
    expected = np.empty(15 * 64, np.int64)
    stream.read(0, expected)
    assert np.array_equal(torch.cat([b.tokens for b in batches]).flatten(), expected)


def damage(manifest, ending, change):
    path = manifest.folder / f"train/code-00001{ending}"
    content = bytearray(path.read_bytes())
    path.write_bytes(change(content))


@pytest.mark.parametrize(
    ("ending", "change", "sentence"),
    [
        (".bin", lambda b: b[:-1], r"code-00001.bin has \d+ bytes, its index says \d+"),
        (".bin", lambda b: b + b"xx", r"code-00001.bin has \d+ bytes, its index says \d+"),
        (".idx", lambda b: b[:-3], r"code-00001.idx has \d+ bytes, its index says \d+"),
        (".idx", lambda b: b"", "code-00001.idx has 0 bytes, its header alone has 34"),
        (".idx", lambda b: b[:20], "code-00001.idx has 20 bytes, its header alone has 34"),
        (".idx", lambda b: b"X" + b[1:], "code-00001.idx is not a Megatron index"),
        (".idx", lambda b: b[:17] + b"\x04" + b[18:], "code-00001.idx holds int32, the manifest"),
        (".idx", lambda b: b[:17] + b"\x06" + b[18:], "holds numbers of type code 6"),
    ],
)
def test_damaged_files_are_refused_at_open(copy, ending, change, sentence):
    damage(copy, ending, change)
    with pytest.raises(InputError, match=sentence):
        open_stream(copy, "train", "code")


def test_a_missing_file_is_refused(copy):
    (copy.folder / "train/code-00000.bin").unlink()
    with pytest.raises(InputError, match=r"code-00000.bin is missing"):
        open_stream(copy, "train", "code")


def test_an_id_beyond_the_vocabulary_is_refused_with_shard_and_offset(copy):
    path = copy.folder / "train/code-00000.bin"
    ids = np.fromfile(path, np.uint16)
    ids[1234] = 60_000
    ids.tofile(path)
    stream = open_stream(copy, "train", "code")
    with pytest.raises(InputError, match=r"code-00000.bin holds token id 60000 at token 1234, bey"):
        stream.read(1200, np.empty(100, np.int64))


def test_documents_of_several_sequences_are_read_by_document(tmp_path):
    """As GPT-NeoX and sentence-split Megatron corpora have them."""
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

    builder = IndexedDatasetBuilder(str(tmp_path / "s.bin"), dtype=np.uint16)
    builder.add_document(torch.arange(10), [4, 6])
    builder.add_document(torch.arange(5), [2, 3])
    builder.finalize(str(tmp_path / "s.idx"))
    shard = Shard(tmp_path / "s")
    assert shard.documents == 2
    assert shard.document_starts(0, 15).tolist() == [0, 10]
    assert [shard.document_of(offset) for offset in (0, 9, 10, 14)] == [0, 0, 1, 1]


def test_finding_documents_does_not_copy_the_index(tmp_path):
    """Its arrays are unaligned, which makes numpy's own search copy all of them."""
    documents = 200_000
    header = HEADER.pack(MAGIC, 1, 8, documents, documents + 1)
    lengths = np.full(documents, 4, np.int32)
    offsets = 8 * np.arange(documents, dtype=np.int64)
    borders = np.arange(documents + 1, dtype=np.int64)
    parts = (header, lengths.tobytes(), offsets.tobytes(), borders.tobytes())
    (tmp_path / "s.idx").write_bytes(b"".join(parts))
    with (tmp_path / "s.bin").open("wb") as file:
        file.truncate(8 * documents)
    shard = Shard(tmp_path / "s", "uint16")
    tracemalloc.start()
    assert shard.document_starts(1001, 1013).tolist() == [1004, 1008, 1012]
    assert shard.document_of(1003) == 250
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 100_000  # the offsets take 1.6 MB
