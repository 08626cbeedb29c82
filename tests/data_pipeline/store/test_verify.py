"""An intact folder passes `verify`, and each fault is listed with its file and place."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from conf.errors import InputError
from data_pipeline.store.checksums import BLOCK_BYTES
from data_pipeline.store.index_file import HEADER
from data_pipeline.store.manifest import load_manifest
from data_pipeline.store.megatron_reader import differences
from data_pipeline.store.shards import Shard
from data_pipeline.store.verify import VerifyConfig, check_folder, sample
from tests.data_pipeline.shard_folders import full_corpus

SHARD = "train/code-00001"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return full_corpus(tmp_path_factory.mktemp("verify") / "whole").folder


@pytest.fixture
def folder(whole, tmp_path):
    shutil.copytree(whole, tmp_path / "data")
    return tmp_path / "data"


def problems(folder, **settings):
    found = check_folder(load_manifest(folder), VerifyConfig(data=str(folder), **settings))
    return [str(problem) for problem in found.problems]


def entry(folder, file=SHARD):
    manifest = load_manifest(folder)
    shards = [e for split in manifest.splits.values() for s in split.values() for e in s]
    return next(e for e in shards if e["file"] == file)


def patch(path, offset, content):
    raw = bytearray(path.read_bytes())
    raw[offset : offset + len(content)] = content
    path.write_bytes(raw)


def test_a_whole_folder_passes(whole):
    assert problems(whole) == []


def test_processes_find_the_same(folder, monkeypatch):
    monkeypatch.setattr("data_pipeline.store.verify.PARALLEL_BYTES", 0)
    for file in (SHARD, "train/prose-00000"):
        patch(folder / f"{file}.bin", 10, b"\xff\xff")
    alone = problems(folder, workers=1)
    assert problems(folder, workers=2) == alone
    assert len({line.split(",")[0] for line in alone}) >= 2


def test_flipped_bit_is_placed_by_its_block(folder):
    path = folder / f"{SHARD}.bin"
    raw = bytearray(path.read_bytes())
    raw[BLOCK_BYTES + 100] ^= 1
    path.write_bytes(raw)
    first, second = problems(folder)
    assert first.startswith(f"{SHARD}.bin: has the sha256 ")
    assert second == (f"{SHARD}.bin, bytes {BLOCK_BYTES} to {2 * BLOCK_BYTES}: checksum mismatch")


def test_damaged_checksums_are_told_from_a_damaged_shard(folder):
    patch(folder / f"{SHARD}.sums", 8, b"\0" * 8)
    (line,) = problems(folder)
    assert line.startswith(
        f"{SHARD}.sums, bytes {BLOCK_BYTES} to {2 * BLOCK_BYTES}: does not match .bin"
    )


def test_every_wrong_id_is_listed_up_to_a_limit(folder):
    for token in (7, 900, 901, 2000):
        patch(folder / f"{SHARD}.bin", 2 * token, np.uint16(60000 + token).tobytes())
    found = [line for line in problems(folder) if "has the id" in line]
    assert found == [
        f"{SHARD}.bin, token {token}: has the id {60000 + token}, outside the vocabulary of 259 ids"
        for token in (7, 900, 901, 2000)
    ]
    short = problems(folder, max_listed=3)
    assert sum("has the id" in line for line in short) == 3
    assert f"{SHARD}.bin: 1 more of this kind" in short


def test_eos_at_other_places(folder):
    path = folder / f"{SHARD}.bin"
    tokens = np.fromfile(path, np.uint16)
    end = int(np.flatnonzero(tokens == 2)[4])
    patch(path, 2 * end, np.uint16(50).tobytes())
    patch(path, 2 * (end - 3), np.uint16(2).tobytes())
    lines = problems(folder)
    assert f"{SHARD}.bin, token {end}: a document ends in 50 instead of EOS (2)" in lines
    assert f"{SHARD}.bin, token {end - 3}: EOS (2) occurs inside a document" in lines


def test_eos_is_free_where_the_manifest_says_so(folder):
    fields = json.loads((folder / "manifest.json").read_text()) | {"ends_in_eos": False}
    (folder / "manifest.json").write_text(json.dumps(fields))
    patch(folder / f"{SHARD}.bin", 20, np.uint16(2).tobytes())
    assert not any("EOS" in line for line in problems(folder))


def test_cut_off_files(folder):
    size = (folder / f"{SHARD}.bin").stat().st_size
    for ending in (".bin", ".idx", ".sums", ".docs.parquet"):
        path = folder / f"{SHARD}{ending}"
        path.write_bytes(path.read_bytes()[:-5])
    mask = folder / "train/code-00000.mask"
    mask.write_bytes(mask.read_bytes()[:-1])
    text = "\n".join(problems(folder))
    tokens = entry(folder)["tokens"]
    assert (
        f"{SHARD}.bin, byte {size - 5}: has {size - 5} bytes, but the manifest requires {size} for "
        f"{tokens} tokens" in text
    )
    assert f"{SHARD}.idx: has " in text
    assert f"{SHARD}.sums, byte " in text
    assert f"{SHARD}.docs.parquet: cannot be read (" in text
    assert "train/code-00000.mask, byte " in text


def test_missing_files(folder):
    for name in (f"{SHARD}.bin", "train/code-00000.mask", "train/prose-00000.docs.parquet"):
        (folder / name).unlink()
    assert problems(folder) == [
        "train/code-00000.mask: is missing",
        f"{SHARD}.bin: is missing",
        "train/prose-00000.docs.parquet: is missing",
    ]


INDEX = {
    "magic": (0, b"X", "idx, byte 0: is not a Megatron index of version 1"),
    "floats": (17, b"\x06", "byte 17: has floating-point data (type code 6)"),
    "type": (17, b"\x04", "byte 17: has ids of type int32, but the manifest has uint16"),
    "counts": (18, b"\x01\x00", "but the header requires"),
    "length": (HEADER.size + 4 * 3, b"\xff\xff\xff\xff", "sequence 3: has the length -1"),
}


@pytest.mark.parametrize("case", INDEX)
def test_damaged_index(case, folder):
    offset, content, expected = INDEX[case]
    patch(folder / f"{SHARD}.idx", offset, content)
    lines = [line for line in problems(folder) if line.startswith(f"{SHARD}.idx")]
    assert any("sha256" in line for line in lines)
    assert any(expected in line for line in lines), lines


def test_pointer_and_border_are_named_by_number(folder):
    documents = entry(folder)["documents"]
    pointers = HEADER.size + 4 * documents
    patch(folder / f"{SHARD}.idx", pointers + 8 * 5, (8).to_bytes(8, "little"))
    borders = pointers + 8 * documents
    patch(folder / f"{SHARD}.idx", borders + 8 * 7, (3).to_bytes(8, "little"))
    text = "\n".join(problems(folder))
    assert "sequence 5: starts at byte 8 of .bin, but the previous one ends at byte " in text
    assert "sequence 6: starts at byte " in text
    assert "document 7: starts at sequence 3, before the start of the previous one" in text


def test_table_mask_tokenizer_and_unknown_files(folder):
    table = pa.table({"file": ["a"], "position": [0]})
    pq.write_table(table, folder / f"{SHARD}.docs.parquet")
    patch(folder / "train/code-00000.mask", 12, b"\x07")
    (folder / "train/stray.bin").write_bytes(b"x")
    (folder / "old.idx").write_bytes(b"x")
    (folder / "notes.html").write_text("a page that a person put there")
    tokenizer = json.loads((folder / "tokenizer.json").read_text()) | {"version": "2.0"}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    np.save(folder / "token_bytes.npy", np.zeros(5, np.uint16))
    text = "\n".join(problems(folder))
    documents = entry(folder)["documents"]
    for line in (
        f"{SHARD}.docs.parquet, row 1: has 1 rows, but the manifest has {documents} documents",
        "train/code-00000.mask, token 12: is neither 0 nor 1",
        "train/stray.bin: is not in the manifest",
        "old.idx: is not in the manifest",
        "token_bytes.npy: has 5 entries, but the vocabulary has 259 ids",
    ):
        assert line in text
    assert "has the fingerprint" in text
    assert "notes.html" not in text


def test_manifest_that_lacks_or_repeats_a_shard(folder):
    fields = json.loads((folder / "manifest.json").read_text())
    shards = fields["splits"]["train"]["code"]
    del shards[0]["sha256"]
    shards.append(shards[1])
    (folder / "manifest.json").write_text(json.dumps(fields))
    assert problems(folder)[:2] == [
        "manifest.json, shard train/code-00000: has no sha256",
        "manifest.json, shard train/code-00001: is listed 2 times",
    ]


def test_a_sample_is_stable_and_sizes_are_checked_for_all(folder):
    entries = [{"file": f"train/x-{n:05}"} for n in range(1000)]
    assert len(sample(entries, 0.0101, 0)) == 11
    assert sample(entries, 0.01, 0) == sample(entries, 0.01, 0) != sample(entries, 0.01, 1)
    chosen = sample([entry(folder, f"train/code-0000{n}") for n in (0, 1)], 0.5, 0)
    assert len(chosen) == 1
    for file in ("code-00000", "code-00001", "prose-00000", "prose-00001"):
        path = folder / f"train/{file}.bin"
        path.write_bytes(path.read_bytes()[:-2])
    lines = problems(folder, sample=0.1)
    assert sum("the manifest requires" in line and ".bin, byte" in line for line in lines) == 4


def test_command(folder, command):
    done = command("data_pipeline", "verify", f"data={folder}")
    assert done.returncode == 0, done.stderr
    assert "read 8 of 8 shards" in done.stdout
    assert "everything matches the manifest, and Megatron-core reads the same" in done.stdout
    patch(folder / f"{SHARD}.bin", 0, b"\xff\xff")
    done = command("data_pipeline", "verify", f"data={folder}", "workers=1")
    assert done.returncode == 2
    assert f"{SHARD}.bin, token 0: has the id 65535" in done.stdout
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert "3 problems in 1 files" in line


@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)  # the reader's __del__ fails
def test_megatron_finds_what_differs(folder):
    files = [SHARD, "train/prose-00000"]
    assert list(differences(folder, files, "uint16")) == []
    index = (folder / f"{SHARD}.idx").read_bytes()
    documents = Shard(folder / SHARD).index.documents
    # Boundaries moved by one sequence: the same number of documents, with other tokens.
    borders = np.frombuffer(index, "<i8", offset=len(index) - 8 * (documents + 1)).copy()
    borders[1:-1] -= 1
    (folder / f"{SHARD}.idx").write_bytes(index[: -8 * (documents + 1)] + borders.tobytes())
    (folder / "train/prose-00000.idx").write_bytes(b"no index")
    found = dict(differences(folder, files, "uint16"))
    assert "different tokens in document" in found[SHARD]
    assert "cannot open it" in found["train/prose-00000"]


@pytest.mark.parametrize("settings", [{"sample": 0.0}, {"sample": 1.5}, {"max_listed": 0}])
def test_settings_out_of_range(settings):
    with pytest.raises(InputError, match="expected"):
        VerifyConfig(data="x", **settings)
