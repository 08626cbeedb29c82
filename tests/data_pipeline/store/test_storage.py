"""Files in an object store are read, written and listed, also if the store fails or is slow."""

from __future__ import annotations

import random

import pytest

from conf.errors import EXIT_STORAGE, InputError
from data_pipeline.store import remote_file, storage
from data_pipeline.store.remote_file import open_binary
from data_pipeline.store.storage import Retry, StorageError
from tests.patience import limit

QUICK = Retry(attempts=3, timeout_seconds=limit(5), first_seconds=0.001)


@pytest.fixture
def put(s3):
    """Writes an object and returns its URL."""

    def write(name: str, content: bytes) -> str:
        url = f"s3://bucket/{name}"
        fs, path = storage._open_store(url)
        fs.pipe_file(path, content)
        return url

    return write


def test_what_is_remote():
    assert storage.is_remote("s3://bucket/x")
    assert not storage.is_remote("data/x")
    assert not storage.is_remote("file:///data/x")
    assert storage.join("s3://bucket/x/", "y") == "s3://bucket/x/y"


def test_listing_names_files_by_folder_and_glob(put, tmp_path):
    for name in ("list/b.jsonl", "list/a.jsonl", "list/deep/c.txt"):
        put(name, b"12345")
    found = storage.list_files("s3://bucket/list")
    assert [file.path for file in found] == [
        f"s3://bucket/list/{name}" for name in ("a.jsonl", "b.jsonl", "deep/c.txt")
    ]
    assert {file.size for file in found} == {5}
    names = [file.path for file in storage.list_files("s3://bucket/list/*.jsonl")]
    assert names == ["s3://bucket/list/a.jsonl", "s3://bucket/list/b.jsonl"]
    assert storage.list_files("s3://bucket/nothing*") == []
    assert storage.list_files("s3://bucket/nothing") == []
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "x.txt").write_text("x")
    assert [file.size for file in storage.list_files(tmp_path)] == [1]
    assert [file.size for file in storage.list_files(f"{tmp_path}/**/*.txt")] == [1]


def test_the_version_follows_the_content(put):
    url = put("versioned", b"old!")
    before = storage.file_info(url)
    put("versioned", b"new!")
    after = storage.file_info(url)
    assert before is not None
    assert after is not None
    assert before.size == after.size
    assert before.version != after.version
    assert storage.file_info("s3://bucket/absent") is None


def test_ranges_and_whole_files(put, tmp_path):
    content = random.Random(0).randbytes(100_000)
    url = put("random", content)
    ranges = [(0, 10), (99_990, 100_000), (5, 70_000)]
    assert storage.read_ranges(url, ranges) == [content[a:b] for a, b in ranges]
    assert storage.read_ranges(url, []) == []
    storage.fetch(url, tmp_path / "folder" / "copy")
    assert (tmp_path / "folder" / "copy").read_bytes() == content
    with pytest.raises(InputError, match=r"s3://bucket/absent does not exist"):
        storage.fetch("s3://bucket/absent", tmp_path / "absent")
    assert [path.name for path in tmp_path.rglob("*")] == ["folder", "copy"]


def test_a_remote_file_reads_and_seeks_like_a_local_one(put, tmp_path, monkeypatch):
    monkeypatch.setattr(remote_file, "READ_AHEAD_BYTES", 1 << 12)
    content = random.Random(1).randbytes(50_001)
    url = put("file", content)
    (tmp_path / "file").write_bytes(content)
    with open_binary(url) as remote, open_binary(tmp_path / "file") as local:
        for size in (1, 5000, 3, 20_000):
            assert remote.read(size) == local.read(size)
        for file in (remote, local):
            file.seek(-100, 2)
        assert remote.read() == local.read()
        remote.seek(0)
        assert remote.read() == content
    with pytest.raises(FileNotFoundError):
        open_binary("s3://bucket/absent")


@pytest.mark.parametrize("status", ["503 Slow Down", "500 Internal Error"])
def test_a_store_that_fails_is_asked_again(put, s3, status):
    url = put("flaky", b"0123456789" * 100)
    s3.status, s3.fail_next, s3.gets = status, 3, 0
    ranges = [(0, 10), (10, 20), (500, 510), (990, 1000)]
    assert storage.read_ranges(url, ranges) == [b"0123456789"] * 4
    assert s3.gets == 4 + 3  # only failed parts are requested again


def test_a_store_that_stays_down_ends_with_one_sentence(put, s3):
    url = put("down", b"x" * 100)
    s3.fail_next, s3.gets = 1000, 0
    with pytest.raises(StorageError, match=r"reading s3://bucket/down failed 3 times \(.+\)\. The"):
        storage.read_ranges(url, [(0, 10)], QUICK)
    assert s3.gets == 3


def test_a_slow_store_is_asked_again_then_given_up(put, s3):
    url = put("slow", b"x" * 100)
    s3.fail_next, s3.stall = 1, True
    again = Retry(attempts=2, timeout_seconds=limit(0.5), first_seconds=0.001)
    assert storage.read_ranges(url, [(0, 10)], again) == [b"x" * 10]
    s3.fail_next = 1000
    slow = Retry(attempts=2, timeout_seconds=0.3, first_seconds=0.001)
    with pytest.raises(StorageError, match=r"failed 2 times \(no answer within 0\.3 s\)") as caught:
        storage.read_ranges(url, [(0, 10)], slow)
    assert caught.value.exit_code == EXIT_STORAGE
    s3.release.set()


def test_nobody_at_home_ends_with_one_sentence(monkeypatch):
    storage._store.cache_clear()
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    with pytest.raises(StorageError, match=r"failed 3 times \(Could not connect to the endpoint"):
        storage.read_ranges("s3://bucket/x", [(0, 10)], QUICK)
    storage._store.cache_clear()


def test_absent_or_refused_credentials_are_said_at_once(s3, monkeypatch, tmp_path):
    s3.gets, s3.status, s3.fail_next = 0, "403 Forbidden", 1000
    with pytest.raises(
        InputError, match=r"reading s3://bucket/x was denied \(.*\). Check the cred"
    ):
        storage.read_ranges("s3://bucket/x", [(0, 10)])
    assert s3.gets == 1
    for key in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(key)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    storage._store.cache_clear()
    with pytest.raises(InputError, match=r"was denied \(Unable to locate credentials\). Check"):
        storage.read_ranges("s3://bucket/x", [(0, 10)])
    storage._store.cache_clear()


def test_what_cannot_be_cured_is_not_retried(put, s3):
    s3.gets = 0
    with pytest.raises(FileNotFoundError):
        storage.read_ranges("s3://bucket/absent", [(0, 10)])
    assert s3.gets == 1


def test_pauses_grow_and_are_bounded():
    retry = Retry(first_seconds=1, longest_seconds=10)
    for number, most in enumerate((1, 2, 4, 8, 10, 10)):
        pauses = [retry.pause(number) for _ in range(200)]
        assert most / 2 < max(pauses) <= most
        assert min(pauses) < most / 3


def test_programming_errors_are_not_retried():
    calls = []

    def broken():
        calls.append(1)
        raise KeyError("x")

    with pytest.raises(KeyError):
        storage.retrying(broken, "x", QUICK)
    assert len(calls) == 1
