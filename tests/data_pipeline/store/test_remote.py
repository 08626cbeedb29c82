"""A corpus in an S3 server on loopback gives the batches of the local one.

Damage is reported before it is in a batch.
"""

from __future__ import annotations

import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from conf.errors import EXIT_STORAGE, InputError
from data_pipeline.sampling.batches import BatchReader, held_out_batches
from data_pipeline.sampling.order import SampleOrder
from data_pipeline.sampling.stage import Stage
from data_pipeline.store import block_cache, storage
from data_pipeline.store.block_cache import BlockCache, shared_cache
from data_pipeline.store.checksums import BLOCK_BYTES
from data_pipeline.store.corpus import open_corpus
from data_pipeline.store.remote import cache_corpus, cached_file
from data_pipeline.store.storage import StorageError
from data_pipeline.trace import WhereConfig, where
from tests.conftest import fresh_command
from tests.corpora import grow_corpus
from tests.runs import arguments, ledger
from tests.sealed import change_manifest, corpus_of, sealed, write_mask

URL = "s3://bucket/corpus"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """Gives each test its own cache folder and block cache."""
    monkeypatch.setenv("HEADWATER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(block_cache, "_shared", None)
    return tmp_path / "cache"


@pytest.fixture
def local(corpus, tmp_path):
    return sealed(corpus, tmp_path / "local")


@pytest.fixture
def upload(s3):
    """Returns a function that replaces the content of the store by a folder."""

    def put(folder: Path) -> None:
        fs, path = storage._open_store(URL)
        if fs.exists(path):
            fs.rm(path, recursive=True)
        for file in folder.rglob("*"):
            if file.is_file():
                fs.pipe_file(f"{path}/{file.relative_to(folder)}", file.read_bytes())
        s3.gets = 0

    return put


def plan(manifest, samples=200):
    return SampleOrder(
        manifest.source_tokens("train"), [Stage(64, samples, {"code": 2, "prose": 1})], 3
    )


def same(one, other):
    assert torch.equal(one.tokens, other.tokens)
    assert torch.equal(one.labels, other.labels)
    assert torch.equal(one.cu_seqlens, other.cu_seqlens)


def test_remote_batches_are_the_local_ones(local, upload, s3):
    upload(local.folder)
    manifest = open_corpus(URL)
    manifest.check_tokenizer()
    assert manifest.fingerprint == local.fingerprint
    order = plan(manifest)
    here, there = BatchReader(local, order), BatchReader(manifest, order)
    for first in range(0, 200, 50):
        numbers = np.arange(first, first + 50)
        for one, other in zip(
            here.read_all(0, numbers, 20), there.read_all(0, numbers, 20), strict=True
        ):
            same(one, other)
    for one, other in zip(
        held_out_batches(local, "code", 64, 4, 1000),
        held_out_batches(manifest, "code", 64, 4, 1000),
        strict=True,
    ):
        same(one, other)
    assert not list(manifest.folder.rglob("*.idx"))
    assert not list(manifest.folder.rglob("*.bin"))


def test_blocks_come_once_many_at_a_time_and_no_index_does(local, upload, s3):
    upload(local.folder)
    manifest = open_corpus(URL)
    reader = BatchReader(manifest, plan(manifest))
    s3.gets = 0
    reader.read(0, np.arange(200))
    # Adjacent blocks of a shard are one range: one request per .bin and per .sums.
    assert s3.gets == 8
    reader.read(0, np.arange(200))
    assert s3.gets == 8


def test_the_cache_is_bounded(local, upload, s3, monkeypatch):
    """The cache keeps 3 of 8 blocks, evicted blocks are fetched again, and batches stay right."""
    upload(local.folder)
    manifest = open_corpus(URL)
    monkeypatch.setattr(block_cache, "MIN_CACHE_BYTES", BLOCK_BYTES)
    order = plan(manifest)
    reader = BatchReader(manifest, order, cache_bytes=3 * BLOCK_BYTES)
    here = BatchReader(local, order)
    for _ in range(2):
        same(reader.read(0, np.arange(200)), here.read(0, np.arange(200)))
    cache = shared_cache()
    assert cache.limit_bytes == 3 * BLOCK_BYTES
    assert len(cache) == 3
    assert cache._file.seek(0, 2) <= 3 * BLOCK_BYTES
    with pytest.raises(InputError, match=r"data\.cache_bytes=65535: expected 65536 or more"):
        BlockCache(BLOCK_BYTES - 1)


def test_the_block_that_was_not_used_for_longest_goes():
    cache = BlockCache(16 * BLOCK_BYTES)
    blocks = [("file", number) for number in range(20)]
    cache.claim(blocks)
    for number, block in enumerate(blocks):
        cache.get(blocks[0])
        cache.put(block, bytes([number]) * 10)
    assert cache.get(blocks[0]) == b"\0" * 10
    assert [block for block in blocks if cache.get(block) is None] == blocks[1:5]
    assert all(cache.get(block) == bytes([block[1]]) * 10 for block in blocks[5:])


def test_threads_that_want_the_same_blocks_ask_once(local, upload, s3):
    upload(local.folder)
    manifest = open_corpus(URL)
    reader = BatchReader(manifest, plan(manifest))
    expected = BatchReader(local, plan(manifest)).read(0, np.arange(200))
    s3.gets, found, start = 0, [], threading.Barrier(6)

    def read():
        start.wait()
        found.append(reader.read(0, np.arange(200)))

    threads = [threading.Thread(target=read) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for batch in found:
        same(batch, expected)
    assert s3.gets <= 4 + 4 * 6  # each block once, checksums perhaps once per thread


def test_errors_and_slow_answers_are_survived(local, upload, s3):
    upload(local.folder)
    manifest = open_corpus(URL)
    order = plan(manifest)
    s3.fail_next = 5
    reader = BatchReader(manifest, order)
    same(reader.read(0, np.arange(200)), BatchReader(local, order).read(0, np.arange(200)))
    assert s3.fail_next == 0


def test_a_store_that_stays_down_ends_with_one_sentence_and_the_reader_recovers(local, upload, s3):
    upload(local.folder)
    manifest = open_corpus(URL)
    reader = BatchReader(manifest, plan(manifest))
    s3.fail_next = 10**6
    for _ in range(2):  # also what another thread waits for: nothing hangs
        with pytest.raises(
            StorageError, match=r"reading s3://bucket/corpus/train/.* failed 4 time"
        ):
            reader.read(0, np.arange(200))
    s3.fail_next = 0
    assert len(reader.read(0, np.arange(200)).tokens) == 200


def edit(folder, name, change):
    path = folder / name
    path.write_bytes(change(bytearray(path.read_bytes())))


def flip(content):
    content[100] ^= 1
    return content


def test_a_flipped_bit_is_named_before_it_is_in_a_batch(local, upload, s3):
    edit(local.folder, "train/code-00001.bin", flip)
    upload(local.folder)
    manifest = open_corpus(URL)
    reader = BatchReader(manifest, plan(manifest))
    with pytest.raises(
        InputError,
        match=r"s3://bucket/corpus/train/code-00001\.bin: checksum mismatch in tokens 0 to 32767\.",
    ):
        reader.read(0, np.arange(200))


def test_a_block_that_the_network_damaged_is_asked_for_again(local, upload, s3, monkeypatch):
    upload(local.folder)
    manifest = open_corpus(URL)
    reader = BatchReader(manifest, plan(manifest))
    right, damaged = storage.read_many, list[str]()

    def read_many(parts, retry=None):
        found = right(parts, retry)
        if parts and parts[0][0].endswith(".bin") and not damaged:
            damaged.append(parts[0][0])
            found[0] = bytes(flip(bytearray(found[0])))
        return found

    monkeypatch.setattr(storage, "read_many", read_many)
    expected = BatchReader(local, plan(manifest)).read(0, np.arange(200))
    same(reader.read(0, np.arange(200)), expected)
    assert damaged


@pytest.mark.parametrize(
    ("name", "change", "sentence"),
    [
        (
            "train/code-00001.bin",
            lambda b: b[:-2],
            r"corpus/train/code-00001\.bin has \d+ bytes instead",
        ),
        (
            "train/code-00000.idx",
            lambda b: b[:-2],
            r"corpus/train/code-00000\.idx has \d+ bytes instead",
        ),
        (
            "train/code-00000.sums",
            lambda b: b + b"x",
            r"code-00000\.sums has 17 bytes instead of 16",
        ),
    ],
)
def test_files_of_a_wrong_size_are_refused_at_the_start(name, change, sentence, local, upload):
    edit(local.folder, name, change)
    upload(local.folder)
    manifest = open_corpus(URL)
    with pytest.raises(InputError, match=sentence):
        BatchReader(manifest, plan(manifest))


def test_a_missing_shard_is_refused_at_the_start(local, upload):
    (local.folder / "train/prose-00001.bin").unlink()
    upload(local.folder)
    manifest = open_corpus(URL)
    with pytest.raises(InputError, match=r"s3://bucket/corpus/train/prose-00001\.bin is missing"):
        BatchReader(manifest, plan(manifest))


def test_a_shard_that_goes_while_it_is_read_is_named(local, upload):
    upload(local.folder)
    manifest = open_corpus(URL)
    reader = BatchReader(manifest, plan(manifest))
    fs, path = storage._open_store(URL)
    fs.rm(f"{path}/train/prose-00000.bin")
    with pytest.raises(InputError, match=r"train/.* or another file of this shard is missing. Res"):
        reader.read(0, np.arange(200))


def test_an_id_beyond_the_vocabulary_is_refused(corpus, upload, tmp_path):
    documents = [[5] * 99 + [2] for _ in range(40)]
    documents[12][34] = 60_000
    upload(corpus_of(tmp_path / "c", corpus, [documents]).folder)
    manifest = open_corpus(URL)
    order = SampleOrder(manifest.source_tokens("train"), [Stage(50, 79, {"a": 1})], 0)
    with pytest.raises(InputError, match=r"a-00000\.bin has the id 60000 at token 1234, outside"):
        BatchReader(manifest, order).read(0, range(79))


def test_masks_are_read_too(corpus, upload, tmp_path):
    folder = tmp_path / "c"
    corpus_of(folder, corpus, [[[5] * 49 + [2] for _ in range(40)]])
    write_mask(folder / "train/a-00000", np.arange(2000) % 3 == 0)
    upload(folder)
    there, here = open_corpus(URL), change_manifest(folder, {})
    upload(folder)
    there = open_corpus(URL)
    order = SampleOrder({"a": 2000}, [Stage(32, 60, {"a": 1})], 0)
    batch = BatchReader(here, order).read(0, range(60))
    same(BatchReader(there, order).read(0, range(60)), batch)
    assert int((batch.labels == -100).sum()) > 32 * 60 // 3


def test_documents_without_eos_are_refused(local, upload):
    change_manifest(local.folder, {"ends_in_eos": False})
    upload(local.folder)
    manifest = open_corpus(URL)
    with pytest.raises(
        InputError, match=r"s3://bucket/corpus is remote, but .* Copy the corpus to this"
    ):
        BatchReader(manifest, plan(manifest))


def test_no_corpus_and_no_manifest_are_refused(s3, upload, local):
    with pytest.raises(
        InputError, match=r"s3://bucket/nothing/manifest\.json does not exist. Upload"
    ):
        open_corpus("s3://bucket/nothing")
    (local.folder / "manifest.json").write_text("{}")
    upload(local.folder)
    with pytest.raises(InputError, match=r"corpus/manifest\.json is not a manifest of a Headwater"):
        open_corpus(URL)


def test_a_corpus_that_was_made_again_gets_a_copy_of_its_own(local, upload, s3):
    upload(local.folder)
    first = cache_corpus(URL)
    s3.gets = 0
    assert cache_corpus(URL + "/") == first
    assert s3.gets == 1  # the manifest alone
    change_manifest(local.folder, {"name": "again"})
    upload(local.folder)
    second = cache_corpus(URL)
    assert second != first
    assert open_corpus(URL).name == "again"
    assert cached_file(open_corpus(URL), "train/code-00000.idx").stat().st_size > 0
    assert not cached_file(open_corpus(URL), "train/absent.idx").exists()


def test_an_addition_is_seen_at_the_next_start(local, upload):
    upload(local.folder)
    before = open_corpus(URL)
    text = "\n\n".join(f"Paragraph {number} of the addition." for number in range(200))
    grown = grow_corpus(local, {"code": text, "notes": text})
    upload(local.folder)
    manifest = open_corpus(URL)
    assert manifest.at_edition(1).fingerprint == before.fingerprint
    new = Stage(64, 90, {"code": 1, "notes": 1}, source_tokens=grown.source_tokens("train"))
    sizes = before.source_tokens("train")
    order = SampleOrder(sizes, [Stage(64, 30, {"code": 2, "prose": 1}), new], 3)
    here, there = BatchReader(grown, order), BatchReader(manifest, order)
    was = BatchReader(before, SampleOrder(sizes, order.stages[:1], 3))
    numbers = np.arange(30)
    same(was.read(0, numbers), there.read(0, numbers))
    assert was.document_tokens == there.document_tokens[:1]
    same(here.read(1, np.arange(90)), there.read(1, np.arange(90)))


def test_a_full_disk_is_said(monkeypatch):
    cache = BlockCache(16 * BLOCK_BYTES)
    cache.claim([("file", 0)])

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(block_cache.os, "pwrite", full)
    with pytest.raises(InputError, match=r"data\.cache_bytes=\d+: .* \(No space left"):
        cache.put(("file", 0), b"x")


@pytest.mark.timeout(240)
def test_a_run_on_a_remote_corpus_is_the_local_one(
    local, upload, s3, command, tmp_path, cache, capsys
):
    """The command reads the same tokens, and `where` finds the documents without a local index.

    If the store is down, the command ends with its own exit code.
    """
    upload(local.folder)
    settings = s3.environment() | {"HEADWATER_CACHE": str(cache)}
    changes = {"stop_after": 2, "validation__every_steps": 0}
    for folder, name in ((local.folder, "here"), (URL, "there")):
        done = command(*arguments(folder, tmp_path / name, **changes), **settings)
        assert done.returncode == 0, done.stderr
    assert ledger(tmp_path / "there") == ledger(tmp_path / "here")
    where(WhereConfig(run=str(tmp_path / "here"), step=2))
    expected = capsys.readouterr().out
    where(WhereConfig(run=str(tmp_path / "there"), step=2))
    assert capsys.readouterr().out == expected
    shutil.rmtree(cache)
    down = settings | {"AWS_ENDPOINT_URL_S3": "http://127.0.0.1:9", "HEADWATER_RETRIES": "2"}
    done = fresh_command(*arguments(URL, tmp_path / "down", **changes), **down)
    assert done.returncode == EXIT_STORAGE, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "failed 2 times (Could not connect to the endpoint" in line
