"""Our reader finds what Megatron's own reader finds, and refuses damaged shards."""

from __future__ import annotations

import os
import shutil
import struct
import tracemalloc

import numpy as np
import pytest
import torch
import xxhash

from conf.errors import InputError
from data_pipeline.sampling.batches import IGNORED, BatchReader, held_out_batches
from data_pipeline.sampling.order import SampleOrder
from data_pipeline.sampling.stage import Stage
from data_pipeline.store import shards
from data_pipeline.store.checksums import BLOCK_BYTES
from data_pipeline.store.corpus import open_stream
from data_pipeline.store.index_file import HEADER, MAGIC
from data_pipeline.store.shards import Shard
from data_pipeline.store.streams import LocalShards, OpenShards, TokenStream
from tests.sealed import change_manifest, corpus_of, sealed, write_mask


def concatenated(manifest, source):
    """Returns the stream of a source as Megatron reads it, and where its documents start."""
    from megatron.core.datasets.indexed_dataset import IndexedDataset

    documents = []
    for entry in manifest.shards("train", source):
        dataset = IndexedDataset(str(manifest.folder / entry["file"]))
        documents += [dataset[i].copy() for i in range(len(dataset))]  # views into its map
    lengths = [len(document) for document in documents]
    return np.concatenate(documents), np.cumsum([0, *lengths[:-1]])


def read(stream, start, count):
    """Returns tokens of a stream, and where the index says that documents start after the first."""
    tokens, begins = np.empty((1, count), np.int64), np.zeros((1, count - 1), bool)
    stream.read(np.array([start]), tokens, np.array([0]), begins)
    return tokens[0], np.flatnonzero(begins[0]) + 1


@pytest.mark.parametrize("source", ["code", "prose"])
def test_the_stream_is_what_megatron_reads(corpus, source):
    expected, starts = concatenated(corpus, source)
    stream = open_stream(corpus, "train", source)
    assert len(stream) == len(expected)
    everything, begins = read(stream, 0, len(expected))
    assert np.array_equal(begins, starts[1:])
    assert np.array_equal(everything, expected)
    border = corpus.shards("train", source)[0]["tokens"]
    for start in (1, 777, border - 50, border - 1, border):
        part, begins = read(stream, start, 100)
        assert np.array_equal(part, expected[start : start + 100])
        inside = starts[(starts > start) & (starts < start + 100)] - start
        assert np.array_equal(begins, inside)


def test_batches_hold_tokens_labels_and_documents(corpus):
    order = SampleOrder(corpus.source_tokens("train"), [Stage(64, 500, {"code": 1, "prose": 1})], 3)
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
    order = SampleOrder(corpus.source_tokens("train"), [Stage(32, 256, {"code": 3, "prose": 1})], 3)
    reader = BatchReader(corpus, order)
    whole = reader.read(0, np.arange(64)).tokens
    for size in (1, 3, 16):
        parts = [reader.read(0, np.arange(64)[i : i + size]).tokens for i in range(0, 64, size)]
        assert torch.equal(torch.cat(parts), whole)


def test_held_out_batches_are_consecutive(corpus):
    stream = open_stream(corpus, "held_out", "code")
    expected, _ = read(stream, 0, 15 * 64)
    batches = list(held_out_batches(corpus, "code", 64, 4, 1000))
    assert [len(batch.tokens) for batch in batches] == [4, 4, 4, 3]
    assert np.array_equal(torch.cat([b.tokens for b in batches]).flatten(), expected)


def batches_of(manifest, count=600):
    """Returns every sample of a plan that reads all of `code`, batch by batch."""
    order = SampleOrder(manifest.source_tokens("train"), [Stage(64, count, {"code": 1})], 3)
    reader = BatchReader(manifest, order)
    return [reader.read(0, range(i, i + 8)) for i in range(0, count, 8)]


def test_eos_and_index_find_the_same_documents(corpus, tmp_path):
    by_eos = batches_of(sealed(corpus, tmp_path / "eos"))
    for one, other in zip(by_eos, batches_of(corpus), strict=True):
        assert torch.equal(one.tokens, other.tokens)
        assert torch.equal(one.labels, other.labels)
        assert torch.equal(one.cu_seqlens, other.cu_seqlens)


def change(path, edit):
    path.write_bytes(edit(bytearray(path.read_bytes())))


def flip(content, at):
    content[at] ^= 4
    return content


def test_a_flipped_bit_is_named_with_shard_and_tokens_before_it_is_in_a_batch(corpus, tmp_path):
    """The bit is in the last block, which is shorter, and then in the first."""
    manifest = sealed(corpus, tmp_path / "c")
    path = manifest.folder / "train/code-00001.bin"
    size = path.stat().st_size
    assert BLOCK_BYTES < size < 2 * BLOCK_BYTES
    batches_of(manifest)
    for at, block in ((size - 3, (32768, size // 2 - 1)), (7, (0, 32767))):
        change(path, lambda content, at=at: flip(content, at))
        sentence = rf"code-00001\.bin: checksum mismatch in tokens {block[0]} to {block[1]}\."
        with pytest.raises(InputError, match=sentence) as caught:
            batches_of(manifest)
        assert caught.value.every_rank
        change(path, lambda content, at=at: flip(content, at))
    batches_of(manifest)


def test_whole_blocks_around_a_damaged_one_are_read(corpus, tmp_path):
    manifest = sealed(corpus, tmp_path / "c")
    change(manifest.folder / "train/code-00000.bin", lambda content: flip(content, 70_000))
    stream = open_stream(manifest, "train", "code")
    read(stream, 0, 32768)
    with pytest.raises(InputError, match=r"code-00000\.bin"):
        read(stream, 32760, 10)


def test_a_block_is_checked_once(corpus, tmp_path, monkeypatch):
    manifest = sealed(corpus, tmp_path / "c")
    stream = open_stream(manifest, "train", "code")
    hashed = []
    right = xxhash.xxh3_64_intdigest

    def counting(data):
        hashed.append(len(data))
        return right(data)

    monkeypatch.setattr(shards.xxhash, "xxh3_64_intdigest", counting)
    for _ in range(3):
        for start in range(0, len(stream) - 200, 199):
            read(stream, start, 200)
    sizes = [entry["tokens"] * 2 for entry in manifest.shards("train", "code")]
    assert len(hashed) == sum(-(-size // BLOCK_BYTES) for size in sizes)


def cut(content):
    return content[:-1]


BEFORE_THE_FIRST_READ = {
    "truncated bin": (
        ".bin",
        cut,
        r"code-00001\.bin has \d+ bytes instead of \d+\. The file is trunc",
    ),
    "longer bin": (".bin", lambda b: b + b"xx", r"code-00001\.bin has \d+ bytes instead of \d+"),
    "empty bin": (".bin", lambda b: b"", r"code-00001\.bin has 0 bytes"),
    "truncated idx": (
        ".idx",
        cut,
        r"code-00001\.idx has \d+ bytes instead of \d+\. The file is trunc",
    ),
    "empty idx": (".idx", lambda b: b"", r"code-00001\.idx has 0 bytes"),
    "truncated sums": (".sums", cut, r"code-00001\.sums has 15 bytes instead of 16"),
}
AT_THE_FIRST_TOUCH = {
    "no index": (".idx", lambda b: b"X" + b[1:], r"code-00001\.idx is not a Megatron index"),
    "other type": (
        ".idx",
        lambda b: b[:17] + b"\x04" + b[18:],
        r"code-00001\.idx has ids of type int32, but the manifest has uint16",
    ),
    "no type": (".idx", lambda b: b[:17] + b"\x06" + b[18:], "has data of type code 6"),
    "index cut by its header": (
        ".idx",
        lambda b: b[:18] + struct.pack("<Q", 3) + b[26:],
        r"code-00001\.idx has \d+ bytes, but its header requires \d+",
    ),
    "index of another shard": (
        ".idx",
        lambda b: flip(b, 34 + 12 * struct.unpack_from("<Q", b, 18)[0] - 7),
        r"code-00001\.idx has \d+ documents and \d+ tokens, but the manifest has",
    ),
    "flipped sums": (".sums", lambda b: flip(b, 3), r"code-00001\.bin: checksum mismatch"),
}


@pytest.mark.parametrize("case", BEFORE_THE_FIRST_READ)
def test_files_of_a_wrong_size_are_refused_at_the_start(case, corpus, tmp_path):
    ending, edit, sentence = BEFORE_THE_FIRST_READ[case]
    manifest = sealed(corpus, tmp_path / "c")
    change(manifest.folder / f"train/code-00001{ending}", edit)
    with pytest.raises(InputError, match=sentence):
        open_stream(manifest, "train", "code")


@pytest.mark.parametrize("case", AT_THE_FIRST_TOUCH)
def test_files_of_a_wrong_content_are_refused_when_they_are_touched(case, corpus, tmp_path):
    ending, edit, sentence = AT_THE_FIRST_TOUCH[case]
    manifest = sealed(corpus, tmp_path / "c")
    change(manifest.folder / f"train/code-00001{ending}", edit)
    stream = open_stream(manifest, "train", "code")
    border = manifest.shards("train", "code")[0]["tokens"]
    read(stream, border - 100, 100)  # the shard before is whole
    with pytest.raises(InputError, match=sentence):
        read(stream, border - 50, 100)


@pytest.mark.parametrize("ending", [".bin", ".idx", ".sums"])
def test_a_missing_file_is_refused(ending, corpus, tmp_path):
    manifest = sealed(corpus, tmp_path / "c")
    path = manifest.folder / f"train/code-00000{ending}"
    path.unlink()
    with pytest.raises(InputError, match=rf"code-00000\{ending} is missing"):
        open_stream(manifest, "train", "code")
    shutil.rmtree(path.parent)
    with pytest.raises(InputError, match=r"code-00000\.bin is missing"):
        open_stream(manifest, "train", "code")


def test_a_manifest_of_another_type_is_refused(corpus, tmp_path):
    manifest = sealed(corpus, tmp_path / "c", dtype="int32")
    with pytest.raises(InputError, match=r"has ids of type uint16, but the manifest has int32"):
        open_stream(manifest, "train", "code")


@pytest.mark.parametrize("dtype", ["uint16", "int32"])
def test_an_id_beyond_the_vocabulary_is_refused_with_shard_and_offset(dtype, corpus, tmp_path):
    """The checksum is right, because the writer had another tokenizer."""
    documents = [[5] * 99 + [2] for _ in range(40)]
    wrong = -7 if dtype == "int32" else 60_000
    documents[12][34] = wrong
    manifest = corpus_of(tmp_path / "c", corpus, [documents[:5], documents[5:]], dtype=dtype)
    order = SampleOrder(manifest.source_tokens("train"), [Stage(50, 79, {"a": 1})], 0)
    reader = BatchReader(manifest, order)
    held = order.locate(0, np.arange(79)).start == 1200
    reader.read(0, np.flatnonzero(~held)[:60])
    with pytest.raises(
        InputError, match=rf"a-00001\.bin has the id {wrong} at token 734, outside the vocab"
    ):
        reader.read(0, np.flatnonzero(held))


def test_shards_are_opened_when_they_are_read_and_closed_again(corpus, tmp_path):
    documents = [[[5] * 49 + [2]] for _ in range(300)]
    manifest = corpus_of(tmp_path / "c", corpus, documents)
    opened = OpenShards(limit=8)
    entries = manifest.shards("train", "a")
    reader = LocalShards(manifest.folder, entries, manifest.dtype, opened)
    stream = TokenStream(reader, entries, manifest.vocab_size, 2)
    assert len(opened) == 0
    before = len(os.listdir("/proc/self/fd"))
    for start in [*range(0, 15_000 - 60, 50), *range(0, 15_000 - 60, 777)]:
        tokens, _ = read(stream, start, 60)
        assert np.array_equal(
            np.flatnonzero(tokens == 2), np.flatnonzero(np.arange(start, start + 60) % 50 == 49)
        )
    assert len(opened) == 8
    assert len(os.listdir("/proc/self/fd")) <= before + 8


def test_masked_tokens_are_read_and_not_predicted(corpus, tmp_path):
    random = np.random.default_rng(0)
    documents = [[*random.integers(3, 200, 49).tolist(), 2] for _ in range(80)]
    tokens = np.array(documents).ravel()
    mask = random.random(len(tokens)) < 0.3
    mask[:2000] = False  # the first shard has no mask
    folder = tmp_path / "c"
    corpus_of(folder, corpus, [documents[:40], documents[40:]])
    write_mask(folder / "train/a-00001", mask[2000:])
    manifest = change_manifest(folder, {})
    order = SampleOrder({"a": 4000}, [Stage(64, 62, {"a": 1})], 1)
    batch = BatchReader(manifest, order).read(0, range(62))
    for row, start in enumerate(order.locate(0, np.arange(62)).start):
        assert np.array_equal(batch.tokens[row], tokens[start : start + 64])
        following = slice(start + 1, start + 65)
        begins = tokens[start : start + 64] == 2
        expected = np.where(mask[following] | begins, IGNORED, tokens[following])
        assert np.array_equal(batch.labels[row], expected)
    (folder / "train/a-00001.mask").write_bytes(b"x" * 1999)
    with pytest.raises(InputError, match=r"a-00001\.mask has 1999 bytes instead of 2000"):
        BatchReader(manifest, order)


@pytest.mark.parametrize("pad_id", [0, 2])
def test_padding_has_no_loss_and_is_a_document_of_its_own(pad_id, corpus, tmp_path):
    """There are blocks of 16 tokens, and the tokenizer may pad with its EOS.

    A piece of a long document fills the second block; its continuation is stored elsewhere.
    """
    first = [5, 6, 7, 2, 8, 9, 2, 10, 11, 12, 2] + [pad_id] * 5
    second = list(range(20, 36))
    third = [13] * 9 + [2] + [pad_id] * 6
    tokenizer = corpus.tokenizer | {"pad_id": pad_id}
    manifest = corpus_of(
        tmp_path / "c", corpus, [[first, second, third]], packed=[8, 16], tokenizer=tokenizer
    )
    order = SampleOrder({"a": 48}, [Stage(16, 2, {"a": 1})], 0)
    starts = order.locate(0, np.arange(2)).start.tolist()
    batch = BatchReader(manifest, order).read(0, [starts.index(0), starts.index(16)])
    i = IGNORED
    assert batch.labels[0].tolist() == [6, 7, 2, i, 9, 2, i, 11, 12, 2, i, i, i, i, i, i]
    assert batch.labels[1].tolist() == [*range(21, 36), i]  # not the document that comes next
    assert batch.cu_seqlens.unique().tolist() == [0, 4, 7, 11, 16, 32]
    order = SampleOrder({"a": 48}, [Stage(8, 5, {"a": 1})], 0)
    starts = order.locate(0, np.arange(5)).start.tolist()
    batch = BatchReader(manifest, order).read(0, [starts.index(0), starts.index(8)])
    assert batch.labels.tolist() == [[6, 7, 2, i, 9, 2, i, 11], [12, 2, i, i, i, i, i, i]]


def test_documents_of_several_sequences_are_read_by_document(tmp_path):
    """GPT-NeoX and sentence-split Megatron corpora have such documents."""
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

    builder = IndexedDatasetBuilder(str(tmp_path / "s.bin"), dtype=np.uint16)
    builder.add_document(torch.arange(10), [4, 6])
    builder.add_document(torch.arange(5), [2, 3])
    builder.finalize(str(tmp_path / "s.idx"))
    shard = Shard(tmp_path / "s")
    assert shard.index.documents == 2
    assert shard.document_starts(0, 15).tolist() == [0, 10]
    assert [shard.index.document_of(offset) for offset in (0, 9, 10, 14)] == [0, 0, 1, 1]


def test_finding_documents_does_not_copy_the_index(tmp_path):
    """The arrays of an index are unaligned, so that numpy's own search would copy them."""
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
    assert shard.index.document_of(1003) == 250
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 100_000  # the offsets take 1.6 MB
